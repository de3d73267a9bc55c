"""Figures are pure: the same numbers give the same figure, and what is drawn is what was measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from moeviz.config import Knobs, Recipe
from moeviz.figures import forest, run_map, small, theme
from moeviz.figures.dot import STRATEGIES, Dot, strategy
from moeviz.paired import FIGURES, Difference, compare
from moeviz.presets import PRESETS
from moeviz.snapshot import record_dtype

SIGN = Knobs(bias_rule="sign", u=0.01)


def rows(seed: int, steps: int = 30, layers: int = 2) -> np.ndarray:
    random = np.random.default_rng(seed)
    table = np.zeros(steps, record_dtype(layers, 4))
    table["step"] = np.arange(1, steps + 1)
    table["max_vio"] = random.random((steps, layers))
    table["task_loss"] = random.random(steps)
    table["fair_max_vio"] = 0.25
    return table


def dot(number: int = 0, knobs: Knobs = SIGN, **changes) -> Dot:
    usual = {"key": ("run", number), "origin": "sweep of u", "recipe": Recipe(seed=number), "knobs": knobs}
    usual |= {"steps": 500, "eval_loss": 0.3 + number / 10, "max_vio": 0.5 + number, "floor": 0.16}
    return Dot(**usual | {"specialisation": 0.4, "others": {"dead_experts": 1}} | changes)


def test_the_same_numbers_give_the_same_figure():
    for draw in (
        lambda: forest.figure("eval_loss", [("u=0.1", compare({0: 1.0, 1: 2.0}, {0: 0.5, 1: 0.7}))], "u=0.003"),
        lambda: run_map.figure([dot(0), dot(1)]),
    ):
        assert draw().to_json() == draw().to_json()


def test_a_panel_holds_every_seed_the_mean_over_layers_and_the_floor():
    drawn = small.panel("u=0.1", {3: rows(0), 4: rows(1)}, "seed 4 diverged")
    first, second = drawn["lines"]
    assert [first["seed"], second["seed"]] == [3, 4]
    assert first["step"] == rows(0)["step"].tolist()
    np.testing.assert_allclose(first["max_vio"], rows(0)["max_vio"].mean(1), atol=1e-4)
    np.testing.assert_allclose(second["task_loss"], rows(1)["task_loss"], atol=1e-4)
    assert (drawn["label"], drawn["note"], drawn["floor"]) == ("u=0.1", "seed 4 diverged", 0.25)
    assert small.panel("u=0.1", {})["floor"] is None


def test_a_line_ends_where_its_run_diverged():
    wild = rows(0)
    wild["task_loss"][-2:] = (np.inf, np.nan)
    told = json.loads(json.dumps(small.panel("u=0.1", {0: wild}), allow_nan=False))
    assert told["lines"][0]["task_loss"][-3:] == [round(float(wild["task_loss"][-3]), 4), None, None]


def test_panels_share_axes_that_hold_every_value():
    shared = small.ranges([rows(0), rows(1)], 30)
    top = max(float(own["max_vio"].mean(1).max()) for own in (rows(0), rows(1)))
    assert shared["steps"] == (0, 30)
    assert top < shared["max_vio"][1] < 1.2 * top
    assert max(own["task_loss"].max() for own in (rows(0), rows(1))) < shared["task_loss"][1]


def test_a_long_run_is_drawn_as_densely_at_its_begin_as_at_its_end_with_its_extremes():
    long = rows(0, 2_000)
    long["max_vio"][77] = 9
    kept = small.spread(long)
    assert 100 < len(kept) <= small.MOST_ROWS
    assert {78, 2_000} <= set(kept["step"].tolist())
    halves = [(kept["step"] <= 1_000).sum(), (kept["step"] > 1_000).sum()]
    assert abs(halves[0] - halves[1]) <= 4
    assert (np.diff(kept["step"].astype(int)) > 0).all()
    assert len(small.spread(rows(0))) == 30


def test_a_run_that_explodes_does_not_press_the_others_flat_and_nothing_draws_nothing():
    wild = rows(1)
    wild["task_loss"][-3:] = (1e6, np.inf, np.nan)
    assert small.ranges([rows(0), wild], 30)["task_loss"][1] < 4
    assert small.ranges([], 30) == {"steps": (0, 30), "max_vio": (0, 1.1), "task_loss": (0, 1.1)}
    assert small.panel("u", {})["lines"] == []


def test_a_forest_plot_shows_means_intervals_and_who_cannot_be_told_apart():
    far, near = compare({0: 1.0, 1: 1.1, 2: 1.2}, dict.fromkeys(range(3), 0.0)), compare({0: 1, 1: -1}, {0: 0, 1: 0})
    alone, without = compare({0: 2.0}, {0: 1.0}), Difference(None, None, None, ())
    drawn = forest.figure("eval_loss", [("a", far), ("b", near), ("c", alone), ("d", without)], "u=0.003")
    [marks] = drawn.data
    assert list(marks.y) == ["a", "b", "c"]
    assert list(marks.x) == [far.mean, near.mean, alone.mean]
    assert marks.x[0] + marks.error_x.array[0] == pytest.approx(far.high)
    assert marks.x[1] - marks.error_x.arrayminus[1] == pytest.approx(near.low)
    assert list(marks.marker.symbol) == ["circle", "circle-open", "circle-open"]
    assert "no interval" in marks.customdata[2][0]
    assert drawn.layout.shapes[0].x0 == 0
    assert "u=0.003" in marks.hovertemplate
    assert drawn.layout.xaxis.title.text == "held-out loss: difference"


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_has_a_title(figure):
    assert theme.TITLES[figure]


def test_the_map_puts_every_dot_where_it_belongs_with_colour_and_symbol_by_strategy():
    dots = [dot(0), dot(1, Knobs()), dot(2, replace(SIGN, alpha=0.1)), dot(3, Knobs(router="expert_choice"))]
    drawn = run_map.figure(dots)
    placed = {trace.customdata[0][0]: (trace.name, trace.x[0], trace.y[0]) for trace in drawn.data}
    assert placed == {run_map.key_of(one): (one.strategy, one.max_vio, pytest.approx(one.eval_loss)) for one in dots}
    assert len({trace.marker.color for trace in drawn.data}) == len({trace.marker.symbol for trace in drawn.data}) == 4
    assert drawn.layout.shapes[0].x0 == 0.16
    assert drawn.layout.shapes[0].line.dash == "dash"


def test_hover_tells_settings_and_seed():
    [trace] = run_map.figure([dot(7, changed=True)]).data
    told = trace.customdata[0][1]
    assert "balancing loss_free; u 0.01" in told
    assert "seed 7, 500 steps, sweep of u" in told
    assert "changed on the way" in told


def test_specialisation_is_the_size_or_the_other_view():
    dots = [dot(0, specialisation=0.1), dot(1, specialisation=0.9), dot(2, specialisation=None)]
    [trace] = run_map.figure(dots).data
    assert trace.marker.size[0] < trace.marker.size[1]
    [trace] = run_map.figure(dots, "specialisation").data
    assert list(trace.y) == [0.1, 0.9]


def test_every_preset_has_a_strategy_and_every_strategy_a_look():
    assert {strategy(preset.knobs) for preset in PRESETS.values()} < set(STRATEGIES)
    assert strategy(Knobs(router="hash")) == "hash"
    assert strategy(Knobs(alpha_z=0.1)) == "no balancing"
    assert set(theme.LOOKS) == set(STRATEGIES)
    assert dot(0, Knobs()).settings == "every knob at its default"


def test_colours_can_be_seen_on_light_and_on_dark():
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour, _ in theme.LOOKS.values():
        assert re.fullmatch("#[0-9a-f]{6}", colour)
        for ground in ("#ffffff", "#0e1117"):
            low, high = sorted([luminance(colour), luminance(ground)])
            assert (high + 0.05) / (low + 0.05) >= 3, (colour, ground)
