"""Who trains next?

A worker process trains many runs, one step at a time. Of the runs whose next step is due, the one that has had the
least time goes first (start-time fair queueing). A run at a target speed is due once per period, a full-speed run
always. So a slow-motion run keeps its pace beside any number of full-speed runs, full-speed runs share the remaining
time equally, and a run that asks for more than its share is treated like a full-speed run: it cannot starve anyone.
(Earliest deadline first gives the same while there is time enough for every target speed; when there is not, it gives
full-speed runs nothing.)

Commands arrive through a pipe and are obeyed between two steps; with nothing to train the worker sleeps in `poll`.

Every so often a run's state is written to a file. Where its process dies, another takes the run up from there: the
steps that were shown already are made again, unseen, and come out the same to the bit; then it goes on.

This is the only module of the room that runs beside torch, and it imports it only in the worker process.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import numpy as np

from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host.block import Block, block_size, receive

NICENESS = 5  # pages answer first
HELD_UP = 3  # times as long as usual
SAVE_AFTER = 0.4  # seconds of training: what a lost process costs at most, per run
FROM_START = "Restart begins again from step 0."
SAVE_SHARE = 50  # and at least this many times what saving takes: 2 % of the time


@dataclass(frozen=True, slots=True)
class Beginning:
    """Everything a worker needs to start a run at step 0, or to take it up where another worker lost it."""

    recipe: Recipe
    knobs: Knobs
    text: bytes | None
    version: int
    playing: bool
    period: float  # seconds from step to step, 0 for as fast as possible
    memory_name: str | None
    weights: str  # the file of its state
    durable: bool  # whether that file must outlast the machine
    versions: dict[int, Knobs] | None = None  # to take it up: the settings by the numbers that its history has
    target: int | None = None
    acknowledged: int = 0
    held: bool = False
    failed: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """A run as the worker sees it. Times are seconds of the monotonic clock."""

    recipe: Recipe
    knobs: Knobs
    text: bytes | None
    version: int
    playing: bool
    period: float
    block: Block
    weights: str = ""
    durable: bool = False
    versions: dict[int, Knobs] | None = None  # while it catches up with its history
    past: np.ndarray | None = None  # that history
    target: int | None = None
    acknowledged: int = 0
    held: bool = False
    failed: bool = False
    engine: Any = None
    told_truth: Any = None  # the engine's identities that were published last
    due: float = field(default_factory=time.monotonic)
    used: float = 0.0  # training time so far, moved up to the worker's clock whenever the run did without
    usual: float = 0.0  # seconds that a step takes as a rule
    unsaved: float = 0.0  # training time since its state was saved
    save_cost: float = 0.0  # seconds that saving took last

    @property
    def building(self) -> bool:
        """Whether it is not there yet: to be built, or to catch up with its history."""
        return self.versions is not None or (self.engine is None and not self.failed)

    @property
    def active(self) -> bool:
        """Whether it wants turns at all: to be built, or to train."""
        return self.building or (not self.failed and self.playing and not self.held)

    def play(self, target: int | None, serial: int) -> None:
        """Train until step `target`, or until told otherwise."""
        self.playing, self.target, self.acknowledged = True, target, serial
        self.stop_at_target()

    def pause(self, serial: int) -> None:
        """Train no further."""
        self.playing, self.target, self.acknowledged = False, None, serial
        self._tell()

    def set_period(self, period: float) -> None:
        """Change the pace, counted from the last step."""
        self.due += period - self.period
        self.period = period

    def stop_at_target(self) -> None:
        """Pause if the target step is reached."""
        if self.target is not None and self.block.step >= self.target:
            self.playing = False
        if not self.playing:
            self.target = None
        self._tell()

    def schedule(self, start: float) -> None:
        """Fix when the next step is due, on a regular beat; time that was lost is not made up for in a burst."""
        self.due = self.due + self.period if self.due + self.period > start else start + self.period

    def charge(self, clock: float, seconds: float) -> None:
        """Count the time of a step. One that another program held up is not counted whole: its run had nothing of it,
        and would wait for all others to have as much."""
        if self.usual:
            seconds = min(seconds, HELD_UP * self.usual)
        self.usual += (seconds - self.usual) / (8 if self.usual else 1)
        self.used = clock + seconds

    def fail(self, message: str, keep_engine: bool = False) -> None:
        """Stop this run, and only this one, keeping its history, and if asked its engine, so that it can go on."""
        self.engine, self.failed = self.engine if keep_engine else None, True
        self.versions = self.past = None
        self.block.tell_status("failed", message, can_go_on=self.engine is not None)
        self.pause(self.acknowledged)

    def go_on(self, serial: int) -> None:
        """Be ready again, paused, at the last good step of a run whose engine was kept."""
        if self.failed and (self.engine is not None or self.building):
            self.failed = False
            self.block.tell_status("starting" if self.building else "ready")
        self.pause(serial)

    def knobs_at(self, step: int) -> Knobs:
        """The settings of a step: those it was made with if it is made again, else those in force."""
        if self.versions is None:
            return self.knobs
        row = self.past[step - int(self.past["step"][0])] if self.past is not None and len(self.past) else None
        return self.knobs if row is None else self.versions.get(int(row["version"]), self.knobs)

    def recall(self, step: int) -> None:
        """Look up the settings of all steps from this one on, to make them again.

        Raises:
            SettingsError: of some it is not known any more, since a long history is thinned.
        """
        _, self.past = self.block.history.since(step - 1)
        if len(self.past) and len(self.past) != int(self.past["step"][-1]) - step + 1:
            raise SettingsError(f"This run was last saved long before what it shows. {FROM_START}")

    def caught_up(self) -> None:
        """All steps that were shown are made again: go on from here."""
        self.versions = self.past = None
        if not self.failed:
            self.block.tell_status("ready")

    def tell_truth(self) -> None:
        """Publish the identities that the engine checked, when there are newer ones."""
        if self.engine.truth is not self.told_truth:
            self.told_truth = self.engine.truth
            self.block.tell_truth([asdict(identity) for identity in self.told_truth])

    def _tell(self) -> None:
        self.block.tell_playing(self.playing, self.target, self.acknowledged)


BOTH = {item.name for item in fields(Beginning)} & {item.name for item in fields(Job)}


def choose(jobs: Iterable[Job], now: float, clock: float) -> Job | None:
    """The run to train next, if any is due. A run that did without for a while gets no credit for it."""
    due = [job for job in jobs if job.active and (job.building or job.due <= now)]
    return min(due, key=lambda job: (max(job.used, clock), job.due), default=None)


class Worker:
    """Trains its runs in turn and obeys commands in between."""

    def __init__(self, connection: Connection, engine: ModuleType) -> None:
        self.connection = connection
        self.engine = engine
        self.jobs: dict[str, Job] = {}
        self.clock = 0.0  # training time a run would have had so far if it never did without

    def serve(self) -> None:
        """Work until told to stop.

        Raises:
            EOFError, OSError: the process that serves the pages is gone.
        """
        wait: float | None = 0.0
        while True:
            while self.connection.poll(wait):
                command = self.connection.recv()
                if command[0] == "stop":
                    return self.save_all()
                self.obey(*command)
                wait = 0.0
            wait = self.turn()

    def obey(self, verb: str, token: str, *arguments: Any) -> None:
        """One command of the server, in the order sent."""
        if verb == "begin":
            self.jobs[token] = self._accept(*arguments)
            return
        if verb == "close":
            self._close(self.jobs.pop(token, None), *arguments)
            return
        job = self.jobs[token]
        if verb == "play":
            job.play(*arguments)
        elif verb == "pause":
            job.pause(*arguments)
        elif verb == "go_on":
            job.go_on(*arguments)
        elif verb == "knobs":
            job.knobs, job.version = arguments
        elif verb == "period":
            job.set_period(*arguments)
        elif verb == "hold":
            (job.held,) = arguments
        if not job.active:
            self.save(job)

    def turn(self) -> float | None:
        """Train one step of one run, if any is due. Gives the seconds until the next turn, None for "no idea"."""
        now = time.monotonic()
        job = choose(self.jobs.values(), now, self.clock)
        if job is None:
            waiting = [job.due - now for job in self.jobs.values() if job.active]
            return max(0.0, min(waiting)) if waiting else None
        self.clock = max(self.clock, job.used)
        job.block.tell_training(True)
        try:
            if job.engine is None:
                self._build(job)
            else:
                self._step(job, now)
        except SettingsError as refusal:
            job.fail(str(refusal))
        except self.engine.TrainingDiverged as divergence:
            job.fail(str(divergence), keep_engine=True)
        except Exception as fault:  # one run's fault must not end the runs of others; it is shown and logged
            traceback.print_exc()
            job.fail(f"An error in the program stopped this run ({type(fault).__name__}: {fault}).")
        job.block.tell_training(False)
        if not job.building and (not job.active or job.unsaved > max(SAVE_AFTER, SAVE_SHARE * job.save_cost)):
            self.save(job)
        return 0.0

    def save(self, job: Job) -> None:
        """Write a run's state to its file, if there is anything new; that it could not be is told, and no more."""
        if job.engine is None or job.building or job.failed or not job.unsaved:
            return
        start = time.monotonic()
        try:
            self.engine.save(job.engine, job.weights, job.durable)
        except OSError as cause:
            job.block.tell_unsaved(cause.strerror or str(cause))
        else:
            job.block.tell_saved(job.engine.step_number)
        job.unsaved, job.save_cost = 0.0, time.monotonic() - start

    def save_all(self) -> None:
        """Before this process ends: whatever will still be there for another server."""
        for job in self.jobs.values():
            if job.durable:
                self.save(job)

    def _accept(self, beginning: Beginning) -> Job:
        recipe = beginning.recipe
        size = block_size(recipe.num_layers, recipe.num_experts)
        memory = receive(self.connection, size, beginning.memory_name)
        given = {name: getattr(beginning, name) for name in BOTH}
        return Job(**given, block=Block(memory, recipe.num_layers, recipe.num_experts))

    def _close(self, job: Job | None, keep: bool) -> None:
        if job is not None and keep:
            self.save(job)

    def _build(self, job: Job) -> None:
        # Not charged as training time: a large model would otherwise wait for all others to catch up.
        history = job.block.history
        engine = None if job.versions is None else self._saved(job)
        if job.versions is not None:
            job.recall(0 if engine is None else engine.step_number + 1)
        if engine is None:
            engine = self.engine.Engine(job.recipe, job.knobs_at(0), job.text)
            first = engine.observe()  # also where it was shown already: it may draw numbers
            if history.last_step < 0:
                history.append(first, job.version)
        engine.wants_truth = True
        job.engine, job.used, job.due = engine, self.clock, time.monotonic()
        if job.versions is None:
            job.block.tell_status("ready")
        elif engine.step_number >= history.last_step:
            job.caught_up()

    def _saved(self, job: Job) -> Any:
        """The run as its file has it, None if it never got that far.

        Raises:
            SettingsError: the file cannot be used.
        """
        try:
            engine = self.engine.load(job.weights, job.text)
        except FileNotFoundError:
            return None
        except (OSError, SettingsError) as cause:
            raise SettingsError(f"The saved state of this run cannot be used ({cause}). {FROM_START}") from None
        job.block.tell_saved(engine.step_number)
        return engine

    def _step(self, job: Job, start: float) -> None:
        if job.versions is not None:
            job.engine.step(job.knobs_at(job.engine.step_number + 1))
            if job.engine.step_number >= job.block.history.last_step:
                job.caught_up()
        else:
            job.block.history.append(job.engine.step(job.knobs), job.version)
            job.tell_truth()
            job.schedule(start)
            if job.target is not None:
                job.stop_at_target()
        seconds = time.monotonic() - start
        job.charge(self.clock, seconds)
        job.unsaved += seconds


def main(connection: Connection, engine_name: str) -> None:
    """The worker process from start to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then closes the pipe
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    engine = importlib.import_module(engine_name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # one worker per core: more threads would fight each other
    engine.Engine(Recipe(), Knobs())  # torch imports a second's worth more for the first: better now than for a visitor
    gc.collect()
    gc.freeze()  # torch's hundred thousand objects stay for good: no need to look at them again and again
    worker = Worker(connection, engine)
    try:
        connection.send(engine.available_devices())
        worker.serve()
    except (EOFError, OSError):
        worker.save_all()  # the server is gone, and with it everyone who could watch
