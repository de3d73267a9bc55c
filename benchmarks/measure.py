"""How is a candidate timed, and how are figures shown?

Candidates take turns in one process, in another order each time, so that other work on the machine and what each
leaves behind trouble them alike; each figure is a median over rounds. Two clocks run: processor time of this process,
which is wall time on a free core and hardly moves when other work runs, and the wall. Ratios are of processor times, on
an accelerator of wall times, with the device synchronised before the clock is read. One thread.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

ROUNDS, SLOW_ROUNDS = 11, 5
TURN = 0.04  # seconds that a turn lasts, if a call is not longer
SLOW = 0.5  # a call of so many seconds takes part in fewer rounds

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Time:
    """Milliseconds on both clocks, and on the one that ratios are made of."""

    cpu: float
    wall: float
    ms: float

    def __truediv__(self, other: Time) -> float:
        return self.ms / other.ms

    def __mul__(self, factor: float) -> Time:
        return Time(self.cpu * factor, self.wall * factor, self.ms * factor)

    def __add__(self, other: Time) -> Time:
        return Time(self.cpu + other.cpu, self.wall + other.wall, self.ms + other.ms)


class Clock:
    """Both clocks, started when made."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._start = self._now()

    def _now(self) -> tuple[float, float]:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()

    def time(self) -> Time:
        """Since the start."""
        cpu, wall = ((now - start) * 1e3 for now, start in zip(self._now(), self._start, strict=True))
        return Time(cpu, wall, wall if self.device == "cuda" else cpu)

    def ms(self) -> float:
        """Milliseconds since the start on the clock that ratios are made of."""
        return self.time().ms


def interleaved(candidates: dict[str, Work], device: str = "cpu", per: int = 1) -> dict[str, Time]:
    """The time of each candidate, divided by `per`: how many of what is counted one call does."""
    shuffled = random.Random(0)  # so that nobody always comes after the same one
    plans = {name: _plan(work, device) for name, work in candidates.items()}
    rounds: dict[str, list[Time]] = {name: [] for name in candidates}
    gc.collect()
    gc.disable()  # what other people's modules leave to collect is not the candidate's
    try:
        for number in range(ROUNDS):
            for name, (calls, turns) in shuffled.sample(sorted(plans.items()), len(plans)):
                if number < turns:
                    rounds[name].append(_turn(candidates[name], device, calls))
    finally:
        gc.enable()
    return {name: _median(turns) * (1 / per) for name, turns in rounds.items()}


def _plan(work: Work, device: str) -> tuple[int, int]:
    """Calls per turn and turns, from a second call: the first one warms up."""
    work()
    clock = Clock(device)
    work()
    seconds = clock.time().wall / 1e3
    return max(1, round(TURN / seconds)), SLOW_ROUNDS if seconds > SLOW else ROUNDS


def _turn(work: Work, device: str, calls: int) -> Time:
    """Per call. The first of many is not timed: it pays for what the candidate before did to the caches and to the
    memory that the process holds."""
    if calls > 1:
        work()
    clock = Clock(device)
    for _ in range(calls):
        work()
    return clock.time() * (1 / calls)


def _median(turns: list[Time]) -> Time:
    return Time(*(statistics.median(getattr(turn, clock) for turn in turns) for clock in Time.__slots__))


def backward(forward: Callable[[], torch.Tensor], leaves: list[torch.Tensor], grad: torch.Tensor) -> Work:
    """A forward pass and the gradients of all leaves."""
    return lambda: torch.autograd.grad(forward(), leaves, grad)


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows under a title, and what has to be known to read them."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""

    def __str__(self) -> str:
        """Markdown whose columns are in line, so that it can be read as it is printed."""
        lines = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rule = tuple("-" * width if place == 0 else "-" * (width - 1) + ":" for place, width in enumerate(widths))
        text = "\n".join(f"| {' | '.join(_cells(line, widths))} |" for line in [self.columns, rule, *self.rows])
        return "\n\n".join(part for part in (f"### {self.title}", self.note, text) if part) + "\n"


def _cells(line: tuple[str, ...], widths: list[int]) -> list[str]:
    """The first column, of words, to the left; figures to the right."""
    pairs = enumerate(zip(line, widths, strict=True))
    return [cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in pairs]


def timed(
    case: str, times: dict[str, Time], reference: str, at_most: dict[str, float] | None = None
) -> list[tuple[str, ...]]:
    """Rows under `columns`: a candidate each, with its ratio to the reference candidate, and its goal if there are."""
    rows = []
    for name, one in times.items():
        ratio = one / times[reference]
        goal = () if at_most is None else (_goal(ratio, at_most.get(name)),)
        rows.append((f"{case}: {name}" if case else name, number(one.cpu), number(one.wall), f"{ratio:.2f}", *goal))
    return rows


def columns(of: str, *more: str) -> tuple[str, ...]:
    """The columns of `timed`; ratios are to `of`."""
    return "", "CPU ms", "wall ms", f"× {of}", *more


def _goal(ratio: float, limit: float | None) -> str:
    return "" if limit is None else f"≤ {limit:g}" + ("" if round(ratio, 2) <= limit else ", missed")


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"
