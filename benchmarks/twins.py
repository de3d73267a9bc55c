"""What is gained by training runs together instead of one after another?

The same recipe and knobs for both: twins in one step, and as many engines in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.measure import Table, Work, columns, interleaved, number, timed
from benchmarks.step import split, steps
from moeviz.config import Knobs, Recipe
from moeviz.engine import EVAL_EVERY, Engine, Twins

BIAS = Knobs(bias_rule="sign")
ALIKE = [BIAS] * 4
FOUR_SPEEDS = [replace(BIAS, u=u) for u in (1e-3, 3e-3, 1e-2, 3e-2)]
TWO_GATINGS = [replace(BIAS, gating=gating) for gating in ("sigmoid", "softmax")] * 2
TWINS = (1, 2, 4, 8)
TOGETHER, IN_TURN = "together", "one after another"


def tables(device: str) -> Iterator[Table]:
    """Four twins against four runs, then cost per run."""
    recipe = Recipe(device=device)
    cases = {
        "default size, the same knobs": (recipe, ALIKE),
        "default size, four u": (recipe, FOUR_SPEEDS),
        "default size, sigmoid and softmax": (recipe, TWO_GATINGS),
        "T512 E8": (replace(recipe, tokens_per_step=512, num_experts=8), ALIKE),
        "d64 H64": (replace(recipe, d_model=64, d_expert=64), ALIKE),
        "T512 E64 K4": (
            replace(recipe, tokens_per_step=512, num_experts=64),
            [replace(knobs, top_k=4) for knobs in ALIKE],
        ),
    }
    rows = []
    for case, (sized, knobs_R) in cases.items():
        pair = {TOGETHER: _together(sized, knobs_R), IN_TURN: _in_turn(sized, knobs_R)}
        rows += timed(case, interleaved(pair, device, EVAL_EVERY), TOGETHER)
    yield Table("Four runs, one step of each", columns("together"), rows)
    yield _per_run(recipe, device)
    yield _parts(recipe)


def _parts(recipe: Recipe) -> Table:
    """What four twins cost in each part of a step, in parts of one run: 1 is free, 4 is nothing gained."""
    engine, twins = Engine(recipe, BIAS), Twins(recipe, ALIKE)
    one, four = split(engine, steps(recipe, BIAS, engine)), split(twins, _together(recipe, ALIKE, twins))
    one, four = (parts | {"the whole step": sum(parts.values())} for parts in (one, four))
    rows = [
        (part, number(one[part] / EVAL_EVERY), number(four[part] / EVAL_EVERY), number(four[part] / one[part]))
        for part in one
    ]
    return Table("Where four twins gain", ("default size, CPU ms of a step", "one", "four", "four ÷ one"), rows)


def _together(recipe: Recipe, knobs_R: list[Knobs], twins: Twins | None = None) -> Work:
    twins = twins or Twins(recipe, knobs_R)

    def work() -> None:
        for _ in range(EVAL_EVERY):
            twins.step(knobs_R)

    return work


def _in_turn(recipe: Recipe, knobs_R: list[Knobs]) -> Work:
    engines = [Engine(recipe, knobs) for knobs in knobs_R]

    def work() -> None:
        for _ in range(EVAL_EVERY):
            for engine, knobs in zip(engines, knobs_R, strict=True):
                engine.step(knobs)

    return work


def _per_run(recipe: Recipe, device: str) -> Table:
    """A step of R twins divided by R, beside a single engine."""
    candidates = {"a run alone": _in_turn(recipe, [BIAS])} | {f"R = {R}": _together(recipe, [BIAS] * R) for R in TWINS}
    times = interleaved(candidates, device, EVAL_EVERY)
    each = {name: times[name] * (1 / runs) for name, runs in zip(times, (1, *TWINS), strict=True)}
    return Table("R twins at the default size, per run", columns("a run alone"), timed("", each, "a run alone"))
