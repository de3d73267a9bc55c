"""What grows when a run does, and what must not?

Whole training steps as experts, tokens and layers become more. Then history: a page asks for what is new, and neither
the answer to a visitor who has nearly everything nor the memory kept may grow with the steps behind a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from types import SimpleNamespace

from benchmarks.measure import Clock, Table, Time, columns, interleaved, number, timed
from benchmarks.step import steps
from moeviz.config import Knobs, Recipe
from moeviz.engine import EVAL_EVERY, Engine
from moeviz.host.block import ring_capacity
from moeviz.live.routes import Known, encode_increment
from moeviz.live.wire import deflate
from moeviz.snapshot import History, Snapshot

BIAS = Knobs(bias_rule="sign")
EXPERTS, TOKENS, LAYERS = (4, 8, 16, 32, 64, 128, 256), (256, 512, 1024, 2048, 4096, 8192), (1, 2, 4, 8)
MOST_FOR_EXPERTS = 3.0  # times the step with 4 experts
HISTORIES = (1_000, 10_000, 100_000, 1_000_000)


def tables(device: str) -> Iterator[Table]:
    """Steps by size, then history by length."""
    wide = {"d_model": 64, "d_expert": 64, "device": device}
    by_experts = {f"E = {E}": Recipe(num_experts=E, **wide) for E in EXPERTS}
    goal = {f"E = {EXPERTS[-1]}": MOST_FOR_EXPERTS}
    yield _steps("Experts, at the same active work (K2 H64 d64 T1024)", by_experts, device, goal)
    yield _steps("Tokens", {f"T = {T}": Recipe(tokens_per_step=T, device=device) for T in TOKENS}, device)
    yield _steps("Layers", {f"L = {L}": Recipe(num_layers=L, device=device) for L in LAYERS}, device)
    if device == "cpu":
        yield _history()


def _steps(title: str, recipes: dict[str, Recipe], device: str, goal: dict[str, float] | None = None) -> Table:
    candidates = {name: steps(recipe, BIAS) for name, recipe in recipes.items()}
    times: dict[str, Time] = interleaved(candidates, device, EVAL_EVERY)
    first = next(iter(times))
    more = () if goal is None else ("goal",)
    return Table(f"A training step. {title}", columns(first, *more), timed("", times, first, goal))


def _history() -> Table:
    """What one visitor's pull costs after so many steps, what is kept, and what a row costs once rows must climb."""
    recipe, engine = Recipe(), Engine(Recipe(), BIAS)
    snapshots = [_changeable(engine.step(BIAS)) for _ in range(2 * EVAL_EVERY)]
    shape = recipe.num_layers, recipe.num_experts
    capacity, rows = ring_capacity(*shape), []
    history, kept = History(*shape, capacity), History.bytes_needed(*shape, capacity)
    for length in HISTORIES:
        appending = _append_up_to(length, history, snapshots)
        pulls = {after: partial(_answer, history, recipe, after) for after in (length - 2, -1)}
        times = interleaved(pulls)
        answers = [cell for after, pull in pulls.items() for cell in (f"{len(pull()):,}", number(times[after].cpu))]
        rows.append((f"{length:,}", f"{kept / 1e6:.2f}", number(appending), *answers))
    titles = ("steps", "kept MB", "to append, µs", "last step: bytes", "CPU ms", "everything: bytes", "CPU ms")
    note = f"Up to {capacity:,} steps nothing climbs to a level above; from then on the time to append includes that."
    title = "History: the answer to a visitor who lacks the last step, and to one who has nothing"
    return Table(title, titles, rows, note)


def _changeable(snapshot: Snapshot) -> SimpleNamespace:
    return SimpleNamespace(**{spec.name: getattr(snapshot, spec.name) for spec in fields(snapshot)})


def _append_up_to(length: int, history: History, snapshots: list[SimpleNamespace]) -> float:
    """Microseconds per row: the same few snapshots again and again, under other steps."""
    rows, clock = range(history.count, length), Clock("cpu")
    for row in rows:
        snapshot = snapshots[row % len(snapshots)]
        snapshot.step = row
        history.append(snapshot)
    return clock.ms() * 1e3 / len(rows)


def _answer(history: History, recipe: Recipe, after: int) -> bytes:
    """What the page's route sends, made by its own function from a run that is nothing but history."""
    run = SimpleNamespace(
        version=0,
        labels_since=lambda version: [],
        state=lambda: SimpleNamespace(status="ready", message="", playing=True),
        records_since=lambda epoch, step, limit: history.since(step, limit),
        recipe=recipe,
        knobs=BIAS,
        truth=lambda: (0, []),
    )
    known = Known(epoch=0, after=after, version=0) if after >= 0 else Known()
    return deflate(encode_increment(run, known))
