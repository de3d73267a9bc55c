"""How does a researcher compare the values of one knob?"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from moeviz import export, farm
from moeviz.cli import options
from moeviz.config import SettingsError, check_text, parse_value
from moeviz.sweep import Result, Sweep, comparisons, describe, parse, rows

COLUMNS = ("eval_loss", "max_vio_batch", "max_vio_floor", "specialisation", "dropped_fraction", "dead_experts")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a sweep came to."""

    results: list[Result]
    lost: int  # cells whose process died
    stopped: bool  # by Ctrl-C


@click.command(
    epilog="Every value is trained from every seed, and a seed gives all values the same first weights and the same "
    "batches. So values are compared seed by seed: printed are the mean difference to --base and a 95 % t-interval "
    "over seeds. An interval misses the true difference once in twenty times, and there is one for each value and "
    "figure. One seed gives no interval. eval_loss and specialisation are of held-out tokens after the last step, "
    "max_vio_batch and dropped_fraction are means over the last 20 % of steps, dead_experts are those of the last 20 "
    "steps, as `python -m moeviz run --help` says; the table shows means over seeds. A run that diverges is said, "
    "stays in the file with the steps it made, and is in no mean. --out holds one line per step, with its seed and "
    "value. Ctrl-C keeps the runs that are done."
)
@options.beginning
@click.option(
    "--vary",
    multiple=True,
    required=True,
    metavar="KNOB=VALUES",
    help="u=1e-4,1e-3,1e-2 or u=1e-4..1e-1:7, groups_kept=1..4, gating=softmax,sigmoid, balancing=none,loss_free.",
)
@click.option("--seeds", type=int, default=1, show_default=True, help="So many, counted from the setting seed.")
@click.option("--steps", type=int, default=500, show_default=True, help="Optimizer steps of each run.")
@click.option("--base", metavar="VALUE", help="Compare with this value.  [default: the setting's own, else the first]")
@click.option("--jobs", type=int, help="Processes that train.  [default: one per core; one on a GPU]")
@click.option("--out", type=click.Path(path_type=Path), help="Write every step, as .parquet, .csv or .json.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def sweep(
    task: str,
    preset_name: str,
    changes: tuple[str, ...],
    vary: tuple[str, ...],
    seeds: int,
    steps: int,
    base: str | None,
    text_file: Path | None,
    settings_file: Path | None,
    jobs: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Train the toy at several values of one knob, from several seeds, on all cores, and compare."""
    try:
        recipe, knobs = options.settings(options.base(task, preset_name, settings_file), changes)
        field, values = _only(vary)
        planned = Sweep(recipe, knobs, field, values, _seeds(recipe.seed, seeds), steps)
        compared_with = planned.usual_base if base is None else _value(field, base)
        comparisons(planned, [], compared_with)  # refuses a base that is no value
        text = options.text(text_file, recipe.task)
        if text is not None:
            check_text(text, recipe.sequence_length)
        if out:
            _check_place(out)
        circumstances = _circumstances(recipe.device)
        outcome = _train(planned, text, _jobs(jobs, circumstances["device"]))
        told = _told(planned, outcome, compared_with) | circumstances
        if out and outcome.results:
            export.write(out, rows(planned, outcome.results), told)
    except SettingsError as refusal:
        raise click.ClickException(str(refusal)) from None
    except OSError as fault:
        raise click.ClickException(f"{fault.filename or out}: {fault.strerror}. Name another place.") from None
    click.echo(json.dumps(told) if as_json else "\n".join(_table(planned, outcome, compared_with)))
    if not circumstances["stacks_exactly"]:
        click.echo("On this machine each run is the one that `run` trains to rounding, not to the bit.", err=True)
    _report(planned, outcome, out)


def _only(vary: tuple[str, ...]) -> tuple[str, tuple[Any, ...]]:
    if len(vary) > 1:
        raise SettingsError(
            f"--vary {vary[1]} is a second knob, and a difference would have two causes. Sweep one, then the other."
        )
    return parse(vary[0])


def _seeds(first: int, count: int) -> tuple[int, ...]:
    if not 1 <= count <= 1000:
        raise SettingsError(f"--seeds {count} is not a number of seeds. Choose 1 or more; 3 give a first interval.")
    return tuple(range(first, first + count))


def _value(field: str, text: str) -> Any:
    return text if field == "balancing" else parse_value(field, text)


def _jobs(asked: int | None, device: str) -> int:
    if asked is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cores if device == "cpu" else 1
    if asked < 1:
        raise SettingsError(f"--jobs {asked} trains nothing. Choose at least 1.")
    return asked


def _check_place(out: Path) -> None:
    """Before an hour of training, not after it."""
    export.check_ending(out)
    if not out.parent.is_dir():
        raise SettingsError(f"{out.parent} is no folder, so {out.name} cannot be written there. Name one that exists.")


def _circumstances(device: str) -> dict[str, Any]:
    from moeviz import machine
    from moeviz.stacking import stacks_exactly
    from moeviz.training import pick_device

    device = pick_device(device)
    return {"device": device, "versions": machine.versions(), "stacks_exactly": stacks_exactly(device)}


def _train(planned: Sweep, text: bytes | None, jobs: int) -> _Outcome:
    results, lost, stopped = [], 0, False
    length = len(planned.cells) * planned.steps
    with (
        click.progressbar(length=length, label="Training", file=sys.stderr) as bar,
        closing(farm.train(planned, text, jobs, bar.update)) as done,
    ):
        try:
            for cells, shown in done:
                results += shown or []
                lost += 0 if shown is not None else len(cells)
        except KeyboardInterrupt:
            stopped = True
    order = {cell: place for place, cell in enumerate(planned.cells)}
    return _Outcome(sorted(results, key=lambda result: order[result.cell]), lost, stopped)


def _told(planned: Sweep, outcome: _Outcome, base: Any) -> dict[str, Any]:
    """All that is known of a sweep beside its steps: what --json prints and the file's metadata hold."""
    cells = [
        {"seed": result.cell.seed, "value": result.cell.value, "diverged": result.diverged or None} | result.summary
        for result in outcome.results
    ]
    differences = [
        {"value": found.value, "base": base, "figure": found.figure, "sentence": found.sentence}
        | asdict(found.difference)
        for found in comparisons(planned, outcome.results, base)
    ]
    finished = {result.cell for result in outcome.results}
    missing = [list(cell) for cell in planned.cells if cell not in finished]
    return describe(planned) | {"cells": cells, "missing": missing, "differences": differences}


def _table(planned: Sweep, outcome: _Outcome, base: Any) -> list[str]:
    """For people: a line per value, then what may be said of each beside the base."""
    width = max(len(planned.label(value)) for value in planned.values) + 2
    lines = [f"{'':{width}}{'seeds':>6}" + "".join(f"  {name}" for name in COLUMNS)]
    for value in planned.values:
        own = [result for result in outcome.results if result.cell.value == value and not result.diverged]
        figures = "".join(f"  {_mean([result.summary[name] for result in own]):>{len(name)}}" for name in COLUMNS)
        lines.append(f"{planned.label(value):{width}}{len(own):>6}{figures}")
    found = comparisons(planned, outcome.results, base)
    for value in planned.values:
        if value != base:
            lines += ["", f"{planned.label(value)} beside {planned.label(base)}"]
            lines += [f"  {one.sentence}" for one in found if one.value == value]
    return lines


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.4g}" if known else "-"


def _report(planned: Sweep, outcome: _Outcome, out: Path | None) -> None:
    """On stderr, after the results: what did not go as planned."""
    for result in outcome.results:
        if result.diverged:
            click.echo(f"{planned.label(result.cell.value)}, seed {result.cell.seed}: {result.diverged}", err=True)
    done, all_of = len(outcome.results), len(planned.cells)
    kept = f" {out} holds {'it' if done == 1 else 'them'}." if out and done else " Nothing was written." if out else ""
    if outcome.stopped:
        raise click.ClickException(f"Stopped: {done} of {all_of} runs are done.{kept}")
    if outcome.lost:
        raise click.ClickException(
            f"A process that trained ended unexpectedly, perhaps for want of memory: {done} of {all_of} runs are done."
            f"{kept} Try fewer --jobs."
        )
    if all(result.diverged for result in outcome.results):
        raise click.ClickException("Every run diverged, so nothing compares.")
