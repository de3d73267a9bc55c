"""The benchmark in the browser: its arithmetic, and that the page it compares ours with shows what the run did."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import live
from benchmarks.plotly_page.figures import figures
from moeviz import Engine, Knobs, Recipe
from moeviz.snapshot import History


@pytest.fixture(scope="module")
def rows():
    recipe = Recipe(num_experts=5, d_model=8, d_expert=8, tokens_per_step=64)
    engine = Engine(recipe, Knobs())
    history = History(1, 5, 100)
    history.append(engine.observe())
    for step in range(30):
        changed = step >= 20
        history.append(engine.step(Knobs(bias_rule="sign" if changed else "none", u=0.1)), version=int(changed))
    return history.since(-1)[1]


def test_the_figures_show_what_the_rows_hold(rows):
    made = figures(rows)
    kept, dropped = made["Expert load now"].data[:2]
    assert list(kept.y + dropped.y) == list(rows["load"][-1, 0])
    assert np.array_equal(made["MaxVio"].data[2].y, rows["max_vio"][:, 0])
    assert np.array_equal(made["Task loss"].data[0].y, rows["task_loss"])
    assert len(made["Selection bias"].data) == 5
    last = [line.y[-1] for line in made["Selection bias"].data]
    assert np.allclose(last, rows["bias"][-1, 0] - rows["bias"][-1, 0].mean())
    assert made["Load history"].data[0].z.shape == (5, 31)


def test_every_title_says_the_newest_step_and_settings_as_the_probe_reads_them(rows):
    for name, figure in figures(rows).items():
        assert figure.layout.title.text == f"{name} · step 30 · settings 1"


def test_a_change_of_settings_is_marked_on_the_charts_over_steps(rows):
    assert figures(rows)["Task loss"].layout.shapes[0].path == "M21,0L21,1"


def test_thinned_rows_keep_equal_distances_where_they_are_drawn_by_distance(rows):
    thinned = rows[[0, 10, 20, 25, 30]]
    heat = figures(thinned)["Load history"].data[0]
    assert (heat.x0, heat.dx, heat.z.shape) == (0, 10, (5, 4))


def test_what_is_written_by_hand_stays():
    text = f"above\n{live.BEGIN}\nold\n{live.END}\nbelow\n"
    assert live.rewritten(text, "new") == f"above\n{live.BEGIN}\n\nnew\n\n{live.END}\nbelow\n"
    assert live.rewritten(live.rewritten(text, "new"), "newer") == live.rewritten(text, "newer")
    with pytest.raises(ValueError, match="There is no"):
        live.rewritten("no markers", "new")


def test_the_page_of_results_has_the_markers():
    assert live.rewritten(live.RESULTS.read_text(encoding="utf-8"), "new")


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 2.0), (0.75, 3.0), (0.76, 4.0), (0.95, 4.0), (1.0, 4.0), (0.01, 1.0)]
)
def test_a_percentile_is_one_of_the_values(share, expected):
    assert live.percentile([4.0, 1.0, 3.0, 2.0], share) == expected


def test_a_gap_may_lie_at_the_edges_of_a_window():
    assert live.longest_gap(0, [3, 4, 6], 7) == 3
    assert live.longest_gap(0, [1, 2], 9) == 7
    assert live.longest_gap(0, [], 5) == 5


def test_frames_count_as_they_are_on_the_wire():
    assert live.frame_size({"opcode": 2, "payloadData": "AAAA"}) == 3 + 2
    assert live.frame_size({"opcode": 2, "payloadData": "AA=="}) == 1 + 2
    assert live.frame_size({"opcode": 2, "payloadData": "AAAA" * 100}) == 300 + 4
    assert live.frame_size({"opcode": 1, "payloadData": "ü"}) == 2 + 2
