"""How is a sweep trained beside the visitors of a server, and how far is it?

As runs like any other, one after another, so that it takes no more of the server than its visitor would: a chunk of
cells of one seed is a run of stacked twins at full speed. Whoever shows the sweep calls `advance` every second or so.
While nobody does, the host holds the run as it holds any run that nobody watches, and later puts it aside in files.

Each cell has the numbers that `python -m moeviz sweep` gives it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moeviz import export
from moeviz.config import SettingsError, check_text
from moeviz.host import Host, Run, RunState
from moeviz.host.block import ring_capacity
from moeviz.snapshot import EVAL_EVERY
from moeviz.sweep import Cell, Result, Sweep, chunks, cost

GLANCE = 0.5  # seconds between two looks at the pace
DIVERGED = "Its loss was not a number any more."  # where its own sentence was gone when somebody looked
AWAY = 5.0  # who has not looked for so long may have had the run held meanwhile, which is no pace
SMOOTH = 0.3  # weight of the newest look

Status = Literal["running", "done", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sweep is."""

    status: Status
    message: str  # a sentence for people: that it waits for a place, or what stopped it; else empty
    done: int  # cells
    cells: int
    made: int  # steps of all cells
    steps: int
    remaining_seconds: float | None  # None before a pace is known, and at the end


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Cells under way."""

    token: str  # of their run
    cells: tuple[Cell, ...]


class SweepRun:
    """A sweep on the workers of a server. Any thread may use it.

    Args:
        host: whose workers train.
        sweep: what to train.
        text: bytes for the text task in place of the standard library's.

    Raises:
        SettingsError: its last step would not be evaluated, not every step could be kept, or the server is too small.
    """

    def __init__(self, host: Host, sweep: Sweep, text: bytes | None = None) -> None:
        check_steps(sweep)
        if text is not None:
            check_text(text, sweep.recipe.sequence_length)
        self.sweep = sweep
        self._host, self._text = host, text
        self._lock = threading.RLock()
        self._to_do: list[list[Cell]] = chunks(sweep, most=host.most_together(sweep.recipe))
        self._all_work = sum(map(self._work, self._to_do))
        self._work_done = 0.0
        self._chunk: _Chunk | None = None
        self._stopped: dict[int, str] = {}  # twins of the chunk that diverged, each with the sentence
        self._results: list[Result] = []
        self._status: Status = "running"
        self._message = ""
        self._pace: float | None = None  # work per second
        self._looked: tuple[float, float] | None = None  # when, and the work done by then

    @property
    def results(self) -> list[Result]:
        """The cells that are done, those that diverged among them, in the order of the grid."""
        place = {cell: number for number, cell in enumerate(self.sweep.cells)}
        return sorted(self._results, key=lambda result: place[result.cell])

    def progress(self) -> Progress:
        """How far it is. Cheap."""
        with self._lock:
            run = self._run()
            step = min(run.state().step, self.sweep.steps) if run else 0
            under_way = len(self._chunk.cells) if self._chunk else 0
            made = len(self._results) * self.sweep.steps + under_way * step
            remaining = None
            if self._status == "running" and self._pace:
                remaining = max(self._all_work - self._work_by(step), 0.0) / self._pace
            cells = len(self.sweep.cells)
            return Progress(
                self._status, self._message, len(self._results), cells, made, cells * self.sweep.steps, remaining
            )

    def live(self) -> list[tuple[Cell, np.ndarray]]:
        """The cells under way and their rows so far, from step 1 on."""
        with self._lock:
            run = self._run()
            if run is None:
                return []
            found = [(twin.id, cell) for twin, cell in zip(run.twins, self._chunk.cells, strict=True)]
            return [(cell, run.records_since(-1, -1, twin=twin)[1][1:]) for twin, cell in found]

    def advance(self) -> None:
        """Look after it: take in what is done, begin what is next. Says that somebody watches."""
        with self._lock:
            if self._status != "running":
                return
            if (run := self._run()) is None:
                self._begin()
                return
            run.touch()
            state = run.state()
            self._message = state.message if state.status == "waiting" else ""
            for twin in run.twins:
                if twin.diverged:
                    self._stopped.setdefault(twin.id, twin.diverged)
            self._look_at_the_pace(state)
            if state.status in ("failed", "lost") and not state.can_go_on:
                self._end("failed", f"{state.message} What was done before is kept.")
            elif state.can_go_on or self._is_made(state) or len(self._stopped) == len(run.twins):
                self._take_in(run, state)
            elif state.step < self.sweep.steps and state.target != self.sweep.steps:
                with suppress(SettingsError):  # it came back from its file, plays, and is there by now
                    run.play(until=self.sweep.steps)

    def cancel(self) -> None:
        """Train no further. Cells that are done are kept, those under way are not."""
        with self._lock:
            if self._status == "running":
                self._end("cancelled", "")

    def _run(self) -> Run | None:
        return self._host.get(self._chunk.token) if self._chunk else None

    def _begin(self) -> None:
        cells = self._chunk.cells if self._chunk else self._to_do.pop(0)  # what is gone is trained again
        sweep, (first, *others) = self.sweep, cells
        try:
            run = self._host.create(
                sweep.recipe_of(first), sweep.knobs_of(first), self._text,
                twins=[{sweep.field: cell.value} for cell in others],
            )  # fmt: skip
        except SettingsError as refusal:
            self._end("failed", str(refusal))
            return
        self._chunk, self._stopped = _Chunk(run.token, tuple(cells)), {}
        run.play(until=sweep.steps)

    def _is_made(self, state: RunState) -> bool:
        return state.status == "ready" and not state.playing and state.step >= self.sweep.steps

    def _take_in(self, run: Run, state: RunState) -> None:
        found = []
        for twin, cell in zip(run.twins, self._chunk.cells, strict=True):
            _, rows = run.records_since(-1, -1, twin=twin.id)
            why = self._stopped.get(twin.id, state.message if state.can_go_on else "")
            if twin.ever_diverged and not why:
                why = DIVERGED
            found.append(result_of(cell, rows, self.sweep.steps, why))
        if any(len(result.rows) < self.sweep.steps and not result.diverged for result in found):
            # It was put aside in the middle of a step, which its files have not kept: nothing to build figures on.
            self._to_do.insert(0, list(self._chunk.cells))
            self._leave()
            return
        self._results += found
        self._work_done += self._work(self._chunk.cells)
        self._leave()
        if self._to_do:
            self._begin()
        else:
            self._status = "done"

    def _end(self, status: Status, message: str) -> None:
        self._status, self._message = status, message
        self._to_do = []
        self._leave()

    def _leave(self) -> None:
        run, self._chunk = self._run(), None
        if run is not None:
            run.close()

    def _work(self, cells: Sequence[Cell]) -> float:
        return cost(len(cells)) * self.sweep.steps

    def _work_by(self, step: int) -> float:
        return self._work_done + (cost(len(self._chunk.cells)) * step if self._chunk else 0.0)

    def _look_at_the_pace(self, state: RunState) -> None:
        now, work = time.monotonic(), self._work_by(min(state.step, self.sweep.steps))
        if self._looked is None:
            self._looked = now, work
        seconds, more = now - self._looked[0], work - self._looked[1]
        if seconds < GLANCE:
            return
        if more > 0 and seconds < AWAY:
            newest = more / seconds
            self._pace = newest if self._pace is None else self._pace + SMOOTH * (newest - self._pace)
        self._looked = now, work


def check_steps(sweep: Sweep) -> None:
    """Refuse a number of steps after which the figures would not be those of the whole run.

    Raises:
        SettingsError: the last step is not evaluated, or there are more than are kept one by one.
    """
    kept = (ring_capacity(sweep.recipe.num_layers, sweep.recipe.num_experts) - 1) // EVAL_EVERY * EVAL_EVERY
    if sweep.steps > kept:
        raise SettingsError(
            f"{sweep.steps:,} steps are too many here: at these sizes a server keeps every step up to {kept:,}. Choose "
            f"fewer, or sweep without the page."
        )
    if sweep.steps % EVAL_EVERY:
        nearest = max(EVAL_EVERY, round(sweep.steps / EVAL_EVERY) * EVAL_EVERY)
        raise SettingsError(
            f"After {sweep.steps} steps nothing is evaluated: that is done every {EVAL_EVERY} steps. Choose {nearest}."
        )


def result_of(cell: Cell, rows: np.ndarray, steps: int, diverged: str = "") -> Result:
    """A cell as `moeviz.cells` has it, of the rows that a server has of its run, from step 0 on.

    One that diverged ends there: beside others that go on, its weights may yet give numbers on another batch, but alone
    it would have stopped. The last step of one that did not was evaluated, which is what its figures are of.
    """
    whole = int(np.argmin(np.append(rows["step"] == np.arange(len(rows)), False)))
    rows = rows[: min(whole, steps + 1)]
    rows = rows[1:] if len(rows) > 1 else rows
    rows["routed_differently"] = np.nan  # as alone: what is trained beside it is chance
    return Result(cell, rows, export.summarize(rows), diverged)
