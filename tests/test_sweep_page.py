"""The pages Sweep and Map as scripts, and which runs leave a dot. What moves by itself is in test_browser_sweep.py."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from moeviz import export
from moeviz import sweep as sweeps
from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.figures.dot import Dot
from moeviz.host.sweeping import SweepRun
from moeviz.paired import compare
from moeviz.sweep import Sweep
from moeviz.ui import dots
from moeviz.ui.sweeps import file_of, planned_of, table
from tests.stand_in_engine import DIVERGING
from tests.test_host import QUICK
from tests.test_host_twins import SIGN, SMALL, to_step
from tests.test_pages import open_page, run_of, shared_host, wait_until
from tests.test_survival import hosting

SMALL_PAGE = {"num_experts": "8", "d_model": "16", "d_expert": "16", "tokens_per_step": "128"}


def open_sweep(**parameters):
    at = open_page(**SMALL_PAGE | parameters)
    return at.switch_page("pages/sweep.py").run()


def visitor(at):
    return at.session_state["moeviz"]


def finish(at):
    def over():
        visitor(at).finds.sweep.advance()
        return visitor(at).finds.sweep.progress().status != "running"

    wait_until(over, 120)
    return at.run()


def panels(at):
    [component] = at.get("bidi_component")
    return json.loads(component.proto.json)["panels"]


def charts(at):
    return [json.loads(element.proto.spec) for element in at.get("plotly_chart")]


# --- planning ---------------------------------------------------------------------------------------------------------


def saved_as(at):
    """In which formats the charts' buttons save them."""
    told = [json.loads(chart.proto.config)["toImageButtonOptions"] for chart in at.get("plotly_chart")]
    assert len({one["filename"] for one in told}) == len(told) > 0
    return {one["format"] for one in told}


def test_without_a_sweep_the_page_says_so_and_offers_one():
    at = open_sweep()
    assert not at.exception
    assert any("No sweep yet" in block.value for block in at.markdown)
    assert at.button(key="sweep_example").label == "Start the example sweep"
    assert visitor(at).finds.sweep is None


def test_only_knobs_that_act_are_offered_and_the_others_say_why():
    at = open_sweep()
    assert "Bias update speed u" not in at.selectbox(key="sweep_field").options
    assert any("u acts on the bias, and bias_rule=none has none" in block.value for block in at.markdown)
    at = open_sweep(balancing="loss_free")
    assert at.selectbox(key="sweep_field").value == "u"
    assert at.multiselect(key="sweep_values_u").value == ["0.0001", "0.001", "0.003", "0.01", "0.1"]
    assert not any("u acts on the bias" in block.value for block in at.markdown)


def test_an_impossible_value_is_refused_before_it_starts_and_named():
    at = open_sweep(balancing="loss_free")
    at.multiselect(key="sweep_values_u").set_value(["0.003", "2"]).run()
    assert "u=2 is impossible here: u=2 is outside 0 to 1." in at.warning[0].value
    assert at.button(key="sweep_start").disabled
    at.multiselect(key="sweep_values_u").set_value(["0.003", "0.01"]).run()
    assert not at.warning
    assert not at.button(key="sweep_start").disabled


@pytest.mark.parametrize(
    ("field", "texts", "steps", "sentence"),
    [
        ("u", ["0.003"], 100, "a sweep needs two"),
        ("u", ["0.003", "0.0030"], 100, "is there twice"),
        ("u", ["0.003", "fast"], 100, "fast"),
        ("u", ["0.003", "0.01"], 110, "Choose 100."),
        ("top_k", ["2", "9"], 100, "top_k=9 is impossible here"),
        ("damping", ["0.1", "1"], 100, "quantile rule's"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_a_sentence(field, texts, steps, sentence):
    planned, refusal = planned_of(SMALL, SIGN, field, texts, 1, steps)
    assert planned is None
    assert sentence in refusal


def test_a_plan_takes_everything_else_from_the_settings():
    planned, refusal = planned_of(SMALL, SIGN, "balancing", ["none", "loss_free"], 3, 100)
    assert refusal == ""
    assert planned.seeds == (SMALL.seed, SMALL.seed + 1, SMALL.seed + 2)
    assert (planned.recipe, planned.knobs, planned.values) == (SMALL, SIGN, ("none", "loss_free"))


@pytest.mark.parametrize("task", ["skills", "text"])
def test_every_knob_that_is_offered_has_values_to_begin_with(task):
    at = open_page(task=task, balancing="loss_free", num_groups="4", groups_kept="2", token_dropping="expert")
    at.switch_page("pages/sweep.py").run()
    options = {at.selectbox(key="sweep_field").format_func(name): name for name in sweeps.FIELDS}
    for title in at.selectbox(key="sweep_field").options:
        at.selectbox(key="sweep_field").select(options[title]).run()
        assert not at.exception, title
        assert not at.warning, (title, at.warning)
        assert not at.button(key="sweep_start").disabled, title


# --- from start to end ------------------------------------------------------------------------------------------------


def test_a_sweep_from_the_page_to_its_table_its_sentences_and_the_map():
    at = open_sweep(balancing="loss_free")
    at.multiselect(key="sweep_values_u").set_value(["0.003", "0.1"]).run()
    at.segmented_control(key="sweep_seeds").set_value(3).run()
    at.number_input(key="sweep_steps").set_value(100).run()
    at.button(key="sweep_start").click().run()
    assert not at.exception
    assert at.button(key="sweep_cancel").label == "Cancel"
    assert [panel["label"] for panel in panels(at)] == ["u=0.003", "u=0.1"]
    finish(at)
    assert not at.exception
    assert [[line["seed"] for line in panel["lines"]] for panel in panels(at)] == [[0, 1, 2], [0, 1, 2]]
    swept = visitor(at).finds.sweep
    assert [tuple(result.cell) for result in swept.results] == [(s, v) for s in (0, 1, 2) for v in (0.003, 0.1)]
    assert all(result.rows["step"].tolist() == list(range(1, 101)) for result in swept.results)
    shown = at.dataframe[0].value
    assert shown["u"].tolist() == ["0.003", "0.1"]
    expected = np.mean([result.summary["eval_loss"] for result in swept.results if result.cell.value == 0.1])
    assert shown["eval_loss"][1] == pytest.approx(expected)
    words = " ".join(block.value for block in at.markdown)
    assert "held-out loss: " in words
    assert "95 % interval" in words
    assert "wins" not in words
    assert {button.key for button in at.get("download_button")} == {"sweep_parquet", "sweep_csv"}
    assert len(visitor(at).finds.dots) == 6
    assert saved_as(at) == {"png"}
    at.segmented_control(key="chart_format").set_value("svg").run()
    assert saved_as(at) == {"svg"}
    at.switch_page("pages/map.py").run()
    assert saved_as(at) == {"svg"}, "the choice goes along"
    assert not at.exception
    told = visitor(at).finds.dots
    [trace] = charts(at)[0]["data"]
    assert {key for key, _ in trace["customdata"]} == {"/".join(map(str, key)) for key in told}


def test_a_sweep_starts_with_what_was_typed_just_before_the_click():
    at = open_sweep(balancing="loss_free")
    at.segmented_control(key="sweep_seeds").set_value(3)
    at.number_input(key="sweep_steps").set_value(100)
    at.button(key="sweep_start").click().run()
    started = visitor(at).finds.sweep
    assert (started.sweep.steps, started.sweep.seeds) == (100, (0, 1, 2))
    started.cancel()


def test_cancel_keeps_what_is_done_and_another_sweep_takes_its_place():
    at = open_sweep(balancing="loss_free")
    at.segmented_control(key="sweep_seeds").set_value(3).run()
    at.number_input(key="sweep_steps").set_value(100).run()
    at.button(key="sweep_start").click().run()
    first = visitor(at).finds.sweep

    def one_seed_done():
        first.advance()
        return first.progress().done == 5

    wait_until(one_seed_done, 120)
    at.button(key="sweep_cancel").click().run()
    assert not at.exception
    assert any("Cancelled: 5 of 15 runs are done and kept." in info.value for info in at.info)
    assert len(at.dataframe[0].value) == 5
    assert len(visitor(at).finds.dots) == 5
    at.button(key="sweep_start").click().run()
    assert visitor(at).finds.sweep is not first
    visitor(at).finds.sweep.cancel()


def test_a_value_whose_cell_diverged_says_so_and_is_in_no_mean():
    with hosting() as host:  # no setting on offer makes the toy diverge
        sweep_run = SweepRun(host, Sweep(SMALL, QUICK, "learning_rate", (0.003, DIVERGING), (0, 1), 50))
        wait_until(lambda: sweep_run.advance() or sweep_run.progress().status != "running", 60)
    shown = table(sweep_run.sweep, sweep_run.results)
    assert shown["seeds"].tolist() == ["2", "0 and 2 diverged"]
    assert shown["max_vio_batch"].notna().tolist() == [True, False]


def test_files_hold_every_step_with_seed_and_value():
    host = shared_host()
    sweep_run = SweepRun(host, Sweep(SMALL, SIGN, "u", (0.003, 0.1), (4,), 50))
    wait_until(lambda: sweep_run.advance() or sweep_run.progress().status != "running", 60)
    steps = pyarrow.parquet.read_table(io.BytesIO(file_of(sweep_run.sweep, sweep_run.results, "parquet")))
    assert steps.num_rows == 100
    assert set(steps["value"].to_pylist()) == {0.003, 0.1}
    assert json.loads(steps.schema.metadata[b"moeviz"])["missing"] == []
    lines = pyarrow.csv.read_csv(io.BytesIO(file_of(sweep_run.sweep, sweep_run.results[:1], "csv")))
    assert (lines.num_rows, set(lines["seed"].to_pylist())) == (50, {4})


# --- the map ----------------------------------------------------------------------------------------------------------


def test_without_a_run_the_map_says_so_and_its_button_starts_a_sweep():
    at = open_page(**SMALL_PAGE)
    at.switch_page("pages/map.py").run()
    assert not at.exception
    assert any("No dot yet" in block.value for block in at.markdown)
    at.button(key="map_example").click().run()
    assert not at.exception
    assert visitor(at).finds.sweep.progress().status == "running"
    visitor(at).finds.sweep.cancel()


def test_a_run_that_rests_leaves_a_dot_and_its_settings_come_back():
    at = open_page(**SMALL_PAGE, balancing="loss_free", u="0.01", seed="3")
    run = run_of(at)
    run.play(until=125)
    wait_until(lambda: run.state().step == 125 and not run.state().playing)
    at.run()
    [dot] = visitor(at).finds.dots.values()
    assert (dot.steps, dot.recipe, dot.knobs) == (125, run.recipe, Knobs(bias_rule="sign", u=0.01))
    at.selectbox(key="preset_choice").select("no_balancing").run()
    at.number_input(key="seed").set_value(0)
    at.switch_page("pages/map.py").run()
    at.selectbox(key="map_dot").select("/".join(map(str, dot.key))).run()
    at.button(key="map_open").click().run()
    assert not at.exception
    assert (visitor(at).knobs, visitor(at).recipe) == (dot.knobs, dot.recipe)
    assert at.button(key="run_pause"), "the Playground is shown"
    assert run_of(at).knobs == dot.knobs


def test_a_reset_and_a_rebuild_leave_the_dot_of_what_they_end():
    at = open_page(**SMALL_PAGE)
    run = run_of(at)
    for end in (lambda: at.button(key="reset").click(), lambda: at.button(key="new_seed").click()):
        run.play()
        wait_until(lambda: run.state().step > 120)
        end().run()
        assert not at.exception
    found = list(visitor(at).finds.dots.values())
    assert len(found) == 2
    assert len({dot.key for dot in found}) == 2


def test_dots_of_a_run_and_its_twins_move_and_are_never_doubled():
    host = shared_host()
    found: dots.Dots = {}
    run = host.create(SMALL, SIGN, twins=[{"u": 0.1}])
    to_step(run, 99)
    dots.take_in(found, run)
    assert not found, "too short"
    for step in (120, 150):
        to_step(run, step)
        dots.take_in(found, run)
        dots.take_in(found, run)
        assert [(dot.origin, dot.steps, dot.knobs.u) for dot in found.values()] == [
            ("run", step, 0.01),
            ("twin B", step, 0.1),
        ]
    for twin, dot in zip(run.twins, found.values(), strict=True):
        told = export.summarize(run.records_since(-1, -1, twin=twin.id)[1][1:])
        assert (dot.eval_loss, dot.specialisation) == (told["eval_loss"], pytest.approx(told["specialisation"]))
        assert dot.max_vio == pytest.approx(told["max_vio_batch"])
        assert dot.others["dead_experts"] == told["dead_experts"]
    run.set_knobs(replace(SIGN, u=0.02))
    dots.take_in(found, run)
    assert len(found) == 2, "no step was made under other knobs yet"
    to_step(run, 200)
    dots.take_in(found, run)
    assert [(dot.steps, dot.knobs.u, dot.changed) for dot in found.values()] == [
        (150, 0.01, False),
        (200, 0.02, True),
        (200, 0.1, False),
    ]


def test_a_run_that_trains_leaves_no_dot_unless_it_ends():
    host = shared_host()
    found: dots.Dots = {}
    run = host.create(SMALL, SIGN)
    run.play()
    wait_until(lambda: run.state().step > 130)
    dots.take_in(found, run)
    assert not found
    dots.take_in(found, run, ends=True)
    assert len(found) == 1


def made(seed: int, knobs: Knobs, loss: float, **changes) -> Dot:
    usual = {"key": ("run", seed, str(knobs)), "origin": "run", "recipe": Recipe(seed=seed), "knobs": knobs}
    usual |= {"steps": 500, "eval_loss": loss, "max_vio": 1.0, "floor": 0.2, "specialisation": None, "others": {}}
    return Dot(**usual | changes)


def test_at_most_so_many_dots_are_kept_and_the_oldest_go():
    found: dots.Dots = {}
    for seed in range(dots.MOST + 3):
        dots._put(found, made(seed, SIGN, 0.5))
    assert len(found) == dots.MOST
    assert min(dot.recipe.seed for dot in found.values()) == 3


def test_settings_are_compared_over_the_seeds_that_they_share():
    faster = replace(SIGN, u=0.1)
    base = [made(seed, SIGN, 0.5 + seed / 10) for seed in (0, 1, 2)]
    other = [made(seed, faster, 0.7 + seed / 10 + seed**2 / 100) for seed in (1, 2, 3)]
    alone = [made(0, Knobs(), 0.9)]
    longer = [made(seed, Knobs(alpha=0.1), 0.4, steps=600) for seed in (0, 1)]
    mixed = [made(seed, Knobs(alpha=0.3), 0.4, changed=True) for seed in (0, 1)]
    settings = dots.settings_of([*base, *other, *alone, *longer, *mixed])
    assert [setting.knobs for setting in settings] == [SIGN, faster, Knobs(alpha=0.1)]
    [(label, difference)] = dots.beside(settings[0], settings, "eval_loss")
    assert label == "u 0.01 → 0.1"
    assert difference == compare({1: 0.81, 2: 0.94}, {1: 0.6, 2: 0.7}) or difference.seeds == (1, 2)
    assert difference.mean == pytest.approx((0.21 + 0.24) / 2)
    assert difference.left_out == ()
    assert dots.beside(settings[2], settings, "eval_loss") == []


def test_a_sweep_that_the_server_cannot_take_is_a_sentence():
    with hosting(1, max_tokens=1024) as host, pytest.raises(SettingsError, match="more than this server allows"):
        SweepRun(host, Sweep(replace(SMALL, tokens_per_step=2048), SIGN, "u", (0.1, 0.2), steps=50))
