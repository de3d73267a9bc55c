"""Who trains next?

A worker process trains many runs, one step at a time. Of the runs whose next step is due, the one that has had the
least time goes first (start-time fair queueing). A run at a target speed is due once per period, a full-speed run
always. So a slow-motion run keeps its pace beside any number of full-speed runs, full-speed runs share the remaining
time equally, and a run that asks for more than its share is treated like a full-speed run: it cannot starve anyone.
(Earliest deadline first gives the same while there is time enough for every target speed; when there is not, it gives
full-speed runs nothing.)

Commands arrive through a pipe and are obeyed between two steps; with nothing to train the worker sleeps in `poll`.
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
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host.block import Block, block_size, receive

NICENESS = 5  # pages answer first


@dataclass(frozen=True, slots=True)
class Beginning:
    """Everything a worker needs to start a run at step 0."""

    recipe: Recipe
    knobs: Knobs
    text: bytes | None
    version: int
    playing: bool
    period: float  # seconds from step to step, 0 for as fast as possible
    memory_name: str | None


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
    target: int | None = None
    acknowledged: int = 0
    held: bool = False
    failed: bool = False
    engine: Any = None
    told_truth: Any = None  # the engine's identities that were published last
    due: float = field(default_factory=time.monotonic)
    used: float = 0.0  # training time so far, moved up to the worker's clock whenever the run did without

    @property
    def active(self) -> bool:
        """Whether it wants turns at all: to be built, or to train."""
        return not self.failed and (self.engine is None or (self.playing and not self.held))

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

    def fail(self, message: str, keep_engine: bool = False) -> None:
        """Stop this run, and only this one, keeping its history, and if asked its engine, so that it can go on."""
        self.engine, self.failed = self.engine if keep_engine else None, True
        self.block.tell_status("failed", message, can_go_on=self.engine is not None)
        self.pause(self.acknowledged)

    def go_on(self, serial: int) -> None:
        """Be ready again, paused, at the last good step of a run whose engine was kept."""
        if self.failed and self.engine is not None:
            self.failed = False
            self.block.tell_status("ready")
        self.pause(serial)

    def tell_truth(self) -> None:
        """Publish the identities that the engine checked, when there are newer ones."""
        if self.engine.truth is not self.told_truth:
            self.told_truth = self.engine.truth
            self.block.tell_truth([asdict(identity) for identity in self.told_truth])

    def _tell(self) -> None:
        self.block.tell_playing(self.playing, self.target, self.acknowledged)


def choose(jobs: Iterable[Job], now: float, clock: float) -> Job | None:
    """The run to train next, if any is due. A run that did without for a while gets no credit for it."""
    due = [job for job in jobs if job.active and (job.engine is None or job.due <= now)]
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
                    return
                self.obey(*command)
                wait = 0.0
            wait = self.turn()

    def obey(self, verb: str, token: str, *arguments: Any) -> None:
        """One command of the server, in the order sent."""
        if verb == "begin":
            self.jobs[token] = self._accept(*arguments)
            return
        if verb == "close":
            self.jobs.pop(token, None)
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

    def turn(self) -> float | None:
        """Train one step of one run, if any is due. Gives the seconds until the next turn, None for "no idea"."""
        now = time.monotonic()
        job = choose(self.jobs.values(), now, self.clock)
        if job is None:
            waiting = [job.due - now for job in self.jobs.values() if job.active]
            return max(0.0, min(waiting)) if waiting else None
        self.clock = max(self.clock, job.used)
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
        return 0.0

    def _accept(self, beginning: Beginning) -> Job:
        recipe = beginning.recipe
        size = block_size(recipe.num_layers, recipe.num_experts)
        memory = receive(self.connection, size, beginning.memory_name)
        return Job(
            recipe=recipe,
            knobs=beginning.knobs,
            text=beginning.text,
            version=beginning.version,
            playing=beginning.playing,
            period=beginning.period,
            block=Block(memory, recipe.num_layers, recipe.num_experts),
        )

    def _build(self, job: Job) -> None:
        # Not charged as training time: a large model would otherwise wait for all others to catch up.
        engine = self.engine.Engine(job.recipe, job.knobs, job.text)
        engine.wants_truth = True
        job.block.history.append(engine.observe(), job.version)
        job.block.tell_status("ready")
        job.engine, job.used, job.due = engine, self.clock, time.monotonic()

    def _step(self, job: Job, start: float) -> None:
        job.block.history.append(job.engine.step(job.knobs), job.version)
        job.tell_truth()
        job.used = self.clock + time.monotonic() - start
        job.schedule(start)
        if job.target is not None:
            job.stop_at_target()


def main(connection: Connection, engine_name: str) -> None:
    """The worker process from start to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then closes the pipe
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    engine = importlib.import_module(engine_name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # one worker per core: more threads would fight each other
    gc.collect()
    gc.freeze()  # torch's hundred thousand objects stay for good: no need to look at them again and again
    try:
        connection.send(engine.available_devices())
        Worker(connection, engine).serve()
    except (EOFError, OSError):
        return  # the server is gone, and with it everyone who could watch
