"""What is a sweep, and which ones can be had?

One knob takes several values, everything else stays, and each value is trained from each of some seeds: a grid of
*cells*. Cells of one seed have the same first weights and batches, so they are trained together as twins (`chunks`),
and each is to the bit the run that it would be alone (or to rounding: `moeviz.stacking`). What cannot be trained, or
would train the same run several times, is refused before anything begins, naming the value.

No torch here: `moeviz.cells` trains. Shapes: N steps.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from moeviz import paired
from moeviz.config import (
    BALANCING,
    KNOB_FIELDS,
    LOSS_WEIGHTS,
    MAX_PARAMETERS,
    MAX_TWINS,
    RECIPE_FIELDS,
    Knobs,
    Recipe,
    SettingsError,
    balancing_fields,
    check,
    parse_value,
    show,
)
from moeviz.snapshot import CIRCUMSTANCES, record_dtype

MAX_CELLS = 400
MAX_BYTES = 1 << 31  # of the steps of all cells, which are kept until the end
MAX_STEPS = 1_000_000
# Values worth comparing, each a stop of the page's slider; of what is not here all choices are offered.
USUAL: dict[str, tuple[Any, ...]] = {
    "u": (1e-4, 1e-3, 3e-3, 1e-2, 1e-1),
    "damping": (0.01, 0.03, 0.1, 0.3, 1.0),
    **dict.fromkeys(LOSS_WEIGHTS.values(), (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)),
    "top_k": (1, 2, 4, 8),
    "groups_kept": (1, 2, 3, 4),
    "num_devices": (2, 4, 8, 16),
    "capacity_factor": (1.0, 1.1, 1.25, 1.5, 2.0),
    "protected_share": (0.0, 0.1, 0.5),
    "learning_rate": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "balancing": tuple(BALANCING),
}
FIELDS = ("balancing", *KNOB_FIELDS)


class Cell(NamedTuple):
    """One run of a sweep."""

    seed: int
    value: Any


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What became of a cell."""

    cell: Cell
    rows: np.ndarray  # of its history, from step 1 on
    summary: dict[str, Any]  # as `moeviz.export.summarize` and `summarize_held_out` give it
    diverged: str = ""  # the sentence of a divergence, after which the cell made no further step


@dataclass(frozen=True, slots=True)
class Sweep:
    """The knob that is varied, its values, and all that stays.

    Args:
        recipe: what every cell builds; the seeds take the place of its own.
        knobs: what every cell has beside its value.
        field: the name of a knob, or "balancing".
        values: at least two, in the order in which they are shown.
        seeds: at least one.
        steps: of every cell.

    Raises:
        SettingsError: it cannot be trained, or all cells of a seed would be the same run.
    """

    recipe: Recipe
    knobs: Knobs
    field: str
    values: tuple[Any, ...]
    seeds: tuple[int, ...] = (0,)
    steps: int = 500

    def __post_init__(self) -> None:
        check_field(self.field)
        _check_several(self.field, self.values)
        _check_seeds(self.recipe, self.seeds)
        if missing := needs(self.field, self.recipe, self.knobs):
            raise SettingsError(missing)
        for value in self.values:
            _check_value(self, value)
        _check_size(self)

    @property
    def cells(self) -> list[Cell]:
        """The grid, seed by seed, the values in their order."""
        return [Cell(seed, value) for seed in self.seeds for value in self.values]

    def recipe_of(self, cell: Cell) -> Recipe:
        """What a cell builds."""
        return replace(self.recipe, seed=cell.seed)

    def knobs_of(self, cell: Cell) -> Knobs:
        """How a cell is trained."""
        return with_value(self.knobs, self.field, cell.value)

    def label(self, value: Any) -> str:
        """A value as people write it: u=0.003."""
        return f"{self.field}={show(value)}"

    @property
    def usual_base(self) -> Any:
        """The value that others are compared with, if nobody names one: the setting's own, else the first."""
        own = self.knobs.balancing if self.field == "balancing" else getattr(self.knobs, self.field)
        return own if own in self.values else self.values[0]


def with_value(knobs: Knobs, field: str, value: Any) -> Knobs:
    """These knobs with one of them, or the whole balancing, at a value.

    Raises:
        SettingsError: the field does not take it.
    """
    return replace(knobs, **balancing_fields(value) if field == "balancing" else {field: value})


def suggested(field: str, recipe: Recipe, knobs: Knobs) -> list[Any]:
    """Values to offer for a knob: the usual ones that this recipe and these knobs can have.

    Empty where nothing can be offered; `needs` says why, if it is for want of another setting.

    Raises:
        SettingsError: there is no such knob.
    """
    check_field(field)
    if needs(field, recipe, knobs):
        return []
    spec = KNOB_FIELDS.get(field)
    choices = spec.metadata["choices"] or ((False, True) if isinstance(spec.default, bool) else ()) if spec else ()
    return [value for value in USUAL.get(field, choices) if can_be_had(recipe, knobs, field, value)]


def needs(field: str, recipe: Recipe, knobs: Knobs) -> str:
    """Why varying this knob would train the same run several times, in a sentence with a remedy; "" if it acts."""
    if field == "probe_every":
        return "probe_every decides what is measured and not how it trains: every value gives the same run."
    of_bias = field in ("u", "damping", "freeze_after")
    if knobs.router != "top_k" and (of_bias or field in ("bias_rule", "num_groups", "groups_kept", "group_score")):
        return f"{field} acts with router=top_k alone, and the router is {knobs.router}. Set router=top_k."
    if of_bias and knobs.bias_rule == "none":
        return f"{field} acts on the bias, and bias_rule=none has none. Set a bias_rule, for example bias_rule=sign."
    if field == "u" and knobs.bias_rule == "quantile":
        return "The quantile rule has damping in place of u. Vary damping, or set another bias_rule."
    if field == "damping" and knobs.bias_rule != "quantile":
        return f"damping is the quantile rule's, and bias_rule={knobs.bias_rule}. Vary u, or set bias_rule=quantile."
    if field in ("groups_kept", "group_score") and knobs.num_groups == 1:
        return f"{field} acts where there are groups. Set num_groups first, for example num_groups=4."
    if field in ("capacity_factor", "protected_share") and knobs.token_dropping == "none":
        return f"{field} acts where something is dropped. Set token_dropping=expert or token_dropping=device first."
    if field == "mtp_weight" and (recipe.task != "text" or recipe.mtp_depth == 0):
        return "mtp_weight acts where the text task looks further ahead. Set task=text and mtp_depth=1 first."
    return ""


def check_field(field: str) -> None:
    """Refuse what is no knob.

    Raises:
        SettingsError: a sweep cannot vary it.
    """
    if field == "seed":
        raise SettingsError("seed is not varied as a setting is: every value is trained from each seed. Use --seeds.")
    if field in RECIPE_FIELDS:
        raise SettingsError(
            f"{field} belongs to the recipe, which all cells of a sweep share. Vary a knob, or sweep once for each "
            f"value with --set {field}=VALUE."
        )
    if field not in FIELDS:
        raise SettingsError(f"There is no knob called {field!r}. `python -m moeviz settings` lists them all.")


def parse(text: str) -> tuple[str, tuple[Any, ...]]:
    """A knob and its values from `u=1e-4,1e-3`, `gating=softmax,sigmoid`, `groups_kept=1..4` (every whole number) or
    `u=1e-4..1e-1:7` (so many values, each the same multiple of the one before).

    Raises:
        SettingsError: it is none of these, or a value that the knob does not take.
    """
    field, equals, listed = text.partition("=")
    field = field.strip()
    if not equals or not listed.strip():
        raise SettingsError(f"--vary {text} names no values. Write --vary u=0.001,0.01 or --vary u=1e-4..1e-1:7.")
    check_field(field)
    if ".." in listed:
        return field, _range(field, listed)
    parts = [part.strip() for part in listed.split(",")]
    return field, tuple(part if field == "balancing" else parse_value(field, part) for part in parts)


def _range(field: str, listed: str) -> tuple[Any, ...]:
    ends, colon, count_text = listed.partition(":")
    if field == "balancing" or type(KNOB_FIELDS[field].default) not in (int, float):
        raise SettingsError(f"{field}={listed} is a range, and {field} is no number. List its values: {field}=A,B.")
    low, high = (parse_value(field, end) for end in ends.split("..", 1))
    if isinstance(low, int):
        if colon or not low < high < low + MAX_CELLS:
            raise SettingsError(f"{field}={listed} is not a range of whole numbers. Write {field}=1..4.")
        return tuple(range(low, high + 1))
    count = int(count_text) if count_text.strip().isdecimal() and len(count_text) < 5 else 0
    if not (0 < low < high < math.inf and 2 <= count <= MAX_CELLS):
        raise SettingsError(
            f"{field}={listed} is not a range. Write {field}=LOW..HIGH:COUNT with 0 < LOW < HIGH and COUNT from 2 to "
            f"{MAX_CELLS}, for example {field}=1e-4..1e-1:7."
        )
    step = (high / low) ** (1 / (count - 1))
    return (*(float(f"{low * step**number:.3g}") for number in range(count - 1)), high)


def chunks(sweep: Sweep, jobs: int = 1, most: int = MAX_TWINS) -> list[list[Cell]]:
    """The cells in groups that are trained together: of one seed, and no more than can be stacked.

    Stacks as large as possible where one process trains them all; smaller ones where several processes would have
    nothing to do. Which of these it is changes no cell's numbers. None has more than `most`.
    """
    most = min(MAX_TWINS, most, MAX_PARAMETERS // sweep.recipe.num_parameters, len(sweep.values))
    splits = [_split(sweep, math.ceil(len(sweep.values) / most) + more) for more in range(len(sweep.values))]
    return min((split for split in splits if max(map(len, split)) <= most), key=lambda split: _time(split, jobs))


def _split(sweep: Sweep, parts: int) -> list[list[Cell]]:
    """Each seed's cells in so many parts of nearly one size."""
    ends = [round(len(sweep.values) * part / parts) for part in range(parts + 1)]
    bounds = [(begin, end) for begin, end in pairwise(ends) if begin < end]
    return [[Cell(seed, value) for value in sweep.values[begin:end]] for seed in sweep.seeds for begin, end in bounds]


def _time(split: Sequence[Sequence[Cell]], jobs: int) -> float:
    """When the last of so many processes is done, in runs alone, if each takes the largest chunk that is left."""
    busy = [0.0] * jobs
    for cells in sorted(map(len, split), reverse=True):
        heapq.heapreplace(busy, busy[0] + cost(cells))
    return max(busy)


def cost(cells: int) -> float:
    """How many times as long as a run alone so many take that are trained together."""
    return 0.45 + 0.55 * cells  # benchmarks/RESULTS.md: four twins cost 2.3 to 2.7 runs


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure under one value, beside the base."""

    value: Any
    figure: str
    difference: paired.Difference
    sentence: str


def comparisons(sweep: Sweep, results: Sequence[Result], base: Any) -> list[Comparison]:
    """Every other value against `base`, figure by figure, paired by seed. A diverged cell has no figures.

    Raises:
        SettingsError: the base is none of the values.
    """
    if base not in sweep.values:
        listed = ", ".join(map(show, sweep.values))
        raise SettingsError(
            f"{sweep.label(base)} is not in this sweep, so nothing compares with it. Choose of {listed}."
        )
    figures: dict[Any, dict[str, dict[int, float | None]]] = {
        value: {figure: dict.fromkeys(sweep.seeds) for figure in paired.FIGURES} for value in sweep.values
    }
    for result in results:
        for figure in () if result.diverged else paired.FIGURES:
            figures[result.cell.value][figure][result.cell.seed] = result.summary[figure]
    found = []
    for value in sweep.values:
        for figure in paired.FIGURES if value != base else ():
            difference = paired.compare(figures[value][figure], figures[base][figure])
            told = paired.sentence(figure, difference, sweep.label(base))
            found.append(Comparison(value, figure, difference, told))
    return found


def rows(sweep: Sweep, results: Sequence[Result]) -> np.ndarray:
    """One row per cell and step, in the order of the grid: `seed`, `value`, and the columns that are the run's own."""
    place = {cell: number for number, cell in enumerate(sweep.cells)}
    ordered = sorted(results, key=lambda result: place[result.cell])
    step_dtype = record_dtype(sweep.recipe.num_layers, sweep.recipe.num_experts)
    own = [name for name in step_dtype.names if name not in CIRCUMSTANCES]
    columns = [(name, step_dtype[name]) for name in own]
    table = np.empty(
        sum(len(result.rows) for result in ordered),
        [("seed", "<u4"), ("value", np.array(sweep.values).dtype), *columns],
    )
    end = 0
    for result in ordered:
        begin, end = end, end + len(result.rows)
        table["seed"][begin:end], table["value"][begin:end] = result.cell
        for name in own:
            table[name][begin:end] = result.rows[name]
    return table


def describe(sweep: Sweep) -> dict[str, Any]:
    """A sweep as it travels with its file."""
    return {
        "recipe": asdict(sweep.recipe),
        "knobs": asdict(sweep.knobs),
        "field": sweep.field,
        "values": list(sweep.values),
        "seeds": list(sweep.seeds),
        "steps": sweep.steps,
    }


def can_be_had(recipe: Recipe, knobs: Knobs, field: str, value: Any) -> bool:
    """Whether a cell with this value could be trained."""
    try:
        check(recipe, with_value(knobs, field, value))
    except SettingsError:
        return False
    return True


def _check_several(field: str, values: tuple[Any, ...]) -> None:
    if len(values) < 2:
        raise SettingsError(f"{field} has {len(values)} value to compare and a sweep needs two. Add another.")
    for place, value in enumerate(values):
        if value in values[:place]:
            raise SettingsError(f"{field}={show(value)} is there twice. Name each value once.")


def _check_seeds(recipe: Recipe, seeds: tuple[int, ...]) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise SettingsError(
            f"{len(seeds)} seeds, {len(set(seeds))} of them different. Choose one or more, all different."
        )
    for seed in seeds:
        replace(recipe, seed=seed)


def _check_value(sweep: Sweep, value: Any) -> None:
    try:
        check(sweep.recipe, with_value(sweep.knobs, sweep.field, value))
    except SettingsError as refusal:
        raise SettingsError(f"{sweep.label(value)} is impossible here: {refusal}") from None


def _check_size(sweep: Sweep) -> None:
    if not 1 <= sweep.steps <= MAX_STEPS:
        raise SettingsError(f"{sweep.steps} steps cannot be swept. Choose 1 to {MAX_STEPS:,}.")
    cells = len(sweep.values) * len(sweep.seeds)
    if cells > MAX_CELLS:
        raise SettingsError(
            f"{len(sweep.values)} values from {len(sweep.seeds)} seeds are {cells:,} runs and a sweep has at most "
            f"{MAX_CELLS}. Choose fewer values or seeds."
        )
    row = record_dtype(sweep.recipe.num_layers, sweep.recipe.num_experts).itemsize
    if cells * sweep.steps * row > MAX_BYTES:
        raise SettingsError(
            f"{cells} runs of {sweep.steps:,} steps would take {cells * sweep.steps * row / 2**30:.1f} GiB of memory "
            f"and a sweep may take {MAX_BYTES / 2**30:.0f}. Choose fewer steps, values or seeds, or smaller sizes."
        )
