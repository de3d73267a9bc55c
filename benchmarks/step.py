"""What does a training step cost, and where does its time go?

The split is timed on real steps: while it is measured, the functions and methods that a step calls (`watched`) are
wrapped in stopwatches. That of the forward pass stands still while routing and experts run within it, so the parts add
up to the step, and what no stopwatch covers is the rest. Routing and experts are forward passes only; the backward pass
is one part. An evaluation is one part with all it calls.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from benchmarks.measure import Clock, Table, Work, columns, interleaved, number, timed
from moeviz import balance, model
from moeviz.config import TASK_DEFAULTS, Knobs, Recipe
from moeviz.engine import EVAL_EVERY, Engine, Twins

BIAS = Knobs(bias_rule="sign")
DEFAULT = "loss-free bias (the default step)"
ROUNDS_OF_SPLIT = 8
FORWARD = "rest of forward"
SNAPSHOT = "rest of the snapshot"
EVALUATION = f"evaluation, every {EVAL_EVERY} steps"
REST = "task loss, rest of the engine"


def tables(device: str) -> Iterator[Table]:
    """Whole steps, their split, and the probe of interference."""
    times = interleaved({name: steps(*settings) for name, settings in variants(device).items()}, device, EVAL_EVERY)
    rows = [(*row, number(1e3 / times[name].ms)) for name, row in zip(times, timed("", times, DEFAULT), strict=True)]
    yield Table("One training step", columns("default", "steps/s"), rows)
    yield _splits(device)
    yield _probing(device)


def recipes(device: str) -> dict[str, Recipe]:
    """The default of each task."""
    text = Recipe(task="text", device=device, **TASK_DEFAULTS["text"])
    return {"skills": Recipe(device=device), "skills, 2 layers": Recipe(num_layers=2, device=device), "text": text}


def variants(device: str) -> dict[str, tuple[Recipe, Knobs]]:
    """What a visitor may train."""
    recipe, groups = Recipe(device=device), {"num_groups": 4, "groups_kept": 2}
    return {
        DEFAULT: (recipe, BIAS),
        "no balancing": (recipe, Knobs()),
        "auxiliary loss": (recipe, Knobs(alpha=0.1)),
        "bias, sequence loss, groups": (recipe, replace(BIAS, alpha_sequence=1e-4, **groups)),
        "dropping per expert": (recipe, replace(BIAS, token_dropping="expert")),
        "64 experts, K = 4": (replace(recipe, num_experts=64), replace(BIAS, top_k=4)),
        "text task, its default size": (recipes(device)["text"], BIAS),
    }


def steps(recipe: Recipe, knobs: Knobs, engine: Engine | None = None) -> Work:
    """From one evaluation to the next, so that each call has one."""
    engine = engine or Engine(recipe, knobs)

    def work() -> None:
        for _ in range(EVAL_EVERY):
            engine.step(knobs)

    return work


def watched(engine: Engine | Twins) -> list[tuple[str, Any, str]]:
    """The parts of a step: what each is called, and the function that is one."""
    return [
        ("data batch", engine.task, "batch"),
        ("routing", model, "decide"),
        ("experts", model, "mix"),
        (FORWARD, engine.model, "hidden"),
        ("backward", torch.Tensor, "backward"),
        ("optimizer, copy for going back", engine, "_descend"),
        ("bias update", balance, "update"),
        ("gradient norms, loads to the processor", engine, "_look"),
        *(("metrics of the step", run.ledger, "figures") for run in engine.runs),
        *(("metrics of the step", run.ledger, "advance") for run in engine.runs),
        (SNAPSHOT, engine, "_snapshot"),
        (EVALUATION, engine, "_examine"),
    ]


def _splits(device: str) -> Table:
    """In per cent of a step, a column per recipe."""
    shares = {name: _split(recipe) for name, recipe in recipes(device).items()}
    parts = next(iter(shares.values()))
    rows = [(part, *(f"{share[part]:.1f} %" for share in shares.values())) for part in parts]
    return Table("Where a step's time goes", ("loss-free bias", *shares), rows)


def _split(recipe: Recipe) -> dict[str, float]:
    """Each part's share in per cent, scaled to add up to 100."""
    engine = Engine(recipe, BIAS)
    medians = split(engine, steps(recipe, BIAS, engine))
    return {part: 100 * median / sum(medians.values()) for part, median in medians.items()}


def split(engine: Engine | Twins, work: Work) -> dict[str, float]:
    """Median over rounds of each part's milliseconds in one round of `work`."""
    rounds = []
    work()
    for _ in range(ROUNDS_OF_SPLIT):
        clock = Clock(engine.device)
        with stopwatches(engine) as spent:
            work()
        rounds.append(spent | {REST: clock.ms() - sum(spent.values())})
    return {part: statistics.median(one[part] for one in rounds) for part in rounds[0]}


@contextmanager
def stopwatches(engine: Engine | Twins) -> Iterator[dict[str, float]]:
    """Milliseconds of each part of the steps made meanwhile."""
    parts = watched(engine)
    spent, running = {part: 0.0 for part, _, _ in parts}, []
    with ExitStack() as stack:
        for part, owner, name in parts:
            watch = _stopwatch(getattr(owner, name), part, spent, running, engine.device)
            stack.enter_context(mock.patch.object(owner, name, watch))
        yield spent


def _stopwatch(
    function: Callable[..., Any], part: str, spent: dict[str, float], running: list[str], device: str
) -> Callable[..., Any]:
    """Within the forward pass and the snapshot parts are told apart, within all others not."""

    def watch(*arguments: Any, **named: Any) -> Any:
        if running and running[-1] not in (FORWARD, SNAPSHOT):
            return function(*arguments, **named)
        clock = Clock(device)
        running.append(part)
        try:
            return function(*arguments, **named)
        finally:
            running.pop()
            own = clock.ms()
            spent[part] += own
            if running:
                spent[running[-1]] -= own

    return watch


def _probing(device: str) -> Table:
    """Steps with and without a probe on one engine; at its default a probe comes every so many steps."""
    every, rows = Knobs().probe_every, []
    for name, recipe in recipes(device).items():
        knobs = Knobs(alpha=0.1, probe_every=0)
        engine = Engine(recipe, knobs)
        both = {"never": knobs, "in each step": replace(knobs, probe_every=1)}
        times = interleaved({how: steps(recipe, knobs, engine) for how, knobs in both.items()}, device, EVAL_EVERY)
        never, each = times.values()
        times[f"every {every} steps, the default"] = never * (1 - 1 / every) + each * (1 / every)
        rows += timed(name, times, "never")
    return Table("The probe of interference, auxiliary loss", columns("without"), rows)
