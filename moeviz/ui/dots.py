"""Which runs leave a dot on the map, and which of them can be compared?

Every cell of a sweep, and every run and twin that rests with at least 100 steps: it reached its target, was paused, or
is about to begin again. A run that goes on moves its dot; one that goes on under other knobs leaves a second one. No
Streamlit here: the dots are the visitor's (`session`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np

from moeviz import paired
from moeviz.config import Knobs, Recipe, describe_change
from moeviz.export import LATE_SHARE
from moeviz.figures.dot import Dot
from moeviz.host import Run, Twin
from moeviz.sweep import Result, Sweep

MOST = 500
FEWEST_STEPS = 100
FEWEST_SEEDS = 2  # that two settings must share

Dots = MutableMapping[tuple[str | int, ...], Dot]


def take_in(dots: Dots, run: Run, ends: bool = False) -> None:
    """A dot for this run and each of its twins, if it rests or is about to end."""
    state = run.state()
    if state.status != "ready" or state.remade is not None or (state.playing and not ends):
        return
    for twin in run.twins if state.step >= FEWEST_STEPS else ():
        key = ("run", run.token, state.epoch, twin.id, twin.version)
        known = dots.get(key)
        if (known is None or known.steps != state.step) and (found := of_twin(run, twin, key)):
            _put(dots, found)


def take_in_cells(dots: Dots, sweep: Sweep, results: Iterable[Result]) -> None:
    """A dot for each cell that is done and did not diverge. The same cell of another sweep has the same dot."""
    for result in results:
        recipe, knobs = sweep.recipe_of(result.cell), sweep.knobs_of(result.cell)
        key = ("cell", zlib.crc32(repr((recipe, knobs, sweep.steps)).encode()))
        told = result.summary
        if key in dots or result.diverged or None in (told["eval_loss"], told["max_vio_batch"]):
            continue
        found = Dot(
            key, f"sweep of {sweep.field}", recipe, knobs, sweep.steps,
            eval_loss=told["eval_loss"], max_vio=told["max_vio_batch"], floor=told["max_vio_floor"],
            specialisation=told["specialisation"],
            others={name: told[name] for name in ("dropped_fraction", "dead_experts")},
        )  # fmt: skip
        _put(dots, found)


def of_twin(run: Run, twin: Twin, key: tuple[str | int, ...]) -> Dot | None:
    """A run's dot; None if it has no figures: it diverged, or its knobs were changed since its last step."""
    _, rows = run.records_since(-1, -1, twin=twin.id)
    rows = rows[rows["step"] > 0]
    if twin.diverged or not len(rows) or rows["version"][-1] != twin.version:
        return None
    last = int(rows["step"][-1])
    late = rows[rows["step"] > (1 - LATE_SHARE) * last]  # by step: a long history is thinned where it is old
    evaluated = rows[np.isfinite(rows["eval_loss"])][-1:]
    if not len(evaluated) or not np.isfinite(late["max_vio"]).all():
        return None
    specialisation = float(evaluated["specialisation"].mean())
    return Dot(
        key, "run" if twin.id == 0 else f"twin {twin.name}", run.recipe, twin.knobs, last,
        eval_loss=float(evaluated["eval_loss"][0]), max_vio=float(late["max_vio"].mean()),
        floor=float(late["fair_max_vio"].mean()),
        specialisation=specialisation if np.isfinite(specialisation) else None,
        others={
            "dropped_fraction": float(late["dropped_fraction"].mean()),
            "dead_experts": int(late["dead_experts"][-1].sum()),
        },
        changed=len(np.unique(rows["version"])) > 1,
    )  # fmt: skip


def _put(dots: Dots, dot: Dot) -> None:
    dots.pop(dot.key, None)
    dots[dot.key] = dot
    while len(dots) > MOST:
        del dots[next(iter(dots))]


@dataclass(frozen=True)
class Setting:
    """Dots that differ in their seed alone."""

    recipe: Recipe  # the seed of it counts for nothing
    knobs: Knobs
    steps: int
    dots: dict[int, Dot]  # by seed

    @property
    def label(self) -> str:
        """What it is called in a menu."""
        one = next(iter(self.dots.values()))
        return f"{one.settings} ({len(self.dots)} seeds, {self.steps:,} steps)"

    def figures(self, name: str) -> dict[int, float | None]:
        """A figure of each seed."""
        return {seed: dot.figures[name] for seed, dot in self.dots.items()}


def settings_of(dots: Iterable[Dot]) -> list[Setting]:
    """Settings with at least two seeds. A run whose knobs were changed on the way has no setting."""
    found: dict[tuple[Recipe, int, Knobs], dict[int, Dot]] = {}
    for dot in dots:
        if not dot.changed:
            found.setdefault((*dot.place, dot.knobs), {})[dot.recipe.seed] = dot
    return [
        Setting(recipe, knobs, steps, own) for (recipe, steps, knobs), own in found.items() if len(own) >= FEWEST_SEEDS
    ]


def beside(base: Setting, settings: Sequence[Setting], figure: str) -> list[tuple[str, paired.Difference]]:
    """What a figure is under each setting that can be compared with the base, minus under the base, seed by seed.

    Comparable are the same sizes, task and number of steps, and at least two equal seeds. Each is named by what the
    base would have to change. A seed that only one of them has is no failure of the other: it is not asked for.
    """
    found = []
    for other in settings:
        shared = base.dots.keys() & other.dots.keys()
        if other is base or (other.recipe, other.steps) != (base.recipe, base.steps) or len(shared) < FEWEST_SEEDS:
            continue
        mine, theirs = other.figures(figure), base.figures(figure)
        difference = paired.compare({seed: mine[seed] for seed in shared}, {seed: theirs[seed] for seed in shared})
        found.append(("; ".join(describe_change(base.knobs, other.knobs)), difference))
    return found
