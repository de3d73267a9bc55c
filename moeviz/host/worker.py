"""Who trains next?

A worker process trains many runs, one step at a time. Of the runs whose next step is due, the one that has had the
least time goes first (start-time fair queueing). A run at a target speed is due once per period, a full-speed run
always. So a slow-motion run keeps its pace beside any number of full-speed runs, full-speed runs share the remaining
time equally, and a run that asks for more than its share is treated like a full-speed run: it cannot starve anyone.
(Earliest deadline first gives the same while there is time enough for every target speed; when there is not, it gives
full-speed runs nothing.)

Commands arrive through a pipe and are obeyed between two steps; with nothing to train the worker sleeps in `poll`.

Every so often a run's state is written to a file. Where its process dies, another takes the run up from there: the
steps that were shown already are made again, unseen, and come out the same to the bit; then it goes on. A twin joins a
run in the same way: all go back to the newest state from before it parted, and what was shown is made again, unseen but
for the steps of the new twin.

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
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host.block import Block, Lane, block_size, receive

NICENESS = 5  # pages answer first
HELD_UP = 3  # times as long as usual
SAVE_AFTER = 0.4  # seconds of training: what a lost process costs at most, per run
FROM_START = "Restart begins again from step 0."
PAST_STATES = 8
SAVE_SHARE = 50  # and at least this many times what saving takes: 2 % of the time


@dataclass(frozen=True, slots=True)
class Twin:
    """One of the runs that a visitor has trained together, as its worker needs it."""

    number: int
    lane: int  # its part of the block
    knobs: Knobs
    version: int
    versions: dict[int, Knobs]  # the settings by the numbers that its history and its plan have
    plan: tuple[tuple[int, int], ...] = ()  # (from step, version): for steps that it lacks and others have
    planned_to: int = -1  # the last of those
    lineage: tuple[tuple[int, float], ...] = ()  # itself and its ancestors, each with the last step that it shares


@dataclass(frozen=True, slots=True)
class Beginning:
    """Everything a worker needs to start a run at step 0, or to take it up where another worker lost it."""

    recipe: Recipe
    twins: tuple[Twin, ...]
    text: bytes | None
    playing: bool
    period: float  # seconds from step to step, 0 for as fast as possible
    memory_name: str | None
    weights: str  # the file of its state
    durable: bool  # whether that file must outlast the machine
    returning: bool = False  # whether it is taken up
    target: int | None = None
    acknowledged: int = 0
    held: bool = False
    failed: bool = False


class Member:
    """A twin as the worker trains it."""

    def __init__(self, twin: Twin, lane: Lane) -> None:
        self.number, self.lane, self.history = twin.number, lane, lane.history
        self.knobs, self.version = twin.knobs, twin.version
        self.told_truth: Any = None  # the engine's identities that were published last
        self.apart = lane.parted is not None
        self.turned: int | None = None  # the settings that its course was told of last
        self.replan(twin)

    def replan(self, twin: Twin) -> None:
        """Take over what is known of steps that are to be made again."""
        self.versions, self.plan, self.planned_to, self.lineage = (
            twin.versions,
            twin.plan,
            twin.planned_to,
            twin.lineage,
        )
        self.past: np.ndarray | None = None  # its history, while steps are made again

    def settings_at(self, step: int) -> tuple[Knobs, int]:
        """Knobs and their number for a step: those that it was or will be made with if that is known, else those in
        force."""
        version = self.version
        if self.past is not None and len(self.past) and step <= int(self.past["step"][-1]):
            version = int(self.past["version"][max(int(np.searchsorted(self.past["step"], step, "right")) - 1, 0)])
        elif step <= self.planned_to:
            version = [number for first, number in self.plan if first <= step][-1]
        return self.versions.get(version, self.knobs), version

    def recall(self, step: int) -> None:
        """Look up the settings of all steps from this one on, to make them again.

        Raises:
            SettingsError: of some it is not known any more, since a long history is thinned.
        """
        _, self.past = self.history.since(step - 1)
        missing = len(self.past) and len(self.past) != int(self.past["step"][-1]) - step + 1
        if missing and not self.lane.ever_failed:
            raise SettingsError(f"This run was last saved long before what it shows. {FROM_START}")

    def take_in(self, result: Any, version: int, diverged: type[Exception]) -> None:
        """Publish what a step showed, if it was not shown already, or why there was none."""
        if isinstance(result, diverged):
            if not self.lane.diverged:
                self.lane.tell_diverged(str(result))
            return
        if self.lane.diverged:
            self.lane.tell_resumed(result.step)
            self.lane.tell_diverged("")
        if result.step <= self.history.last_step:
            return
        if version != self.turned:
            self.lane.tell_turn(result.step, version)
            self.turned = version
        self.history.append(result, version)
        if not self.apart and result.apart.routed_differently > 0:
            self.apart = True
            self.lane.tell_parted(result.step, result.apart.first_token)

    def tell_truth(self, identities: Any) -> None:
        """Publish the identities that the engine checked, when there are newer ones."""
        if identities is not self.told_truth:
            self.told_truth = identities
            self.lane.tell_truth([asdict(identity) for identity in identities])


@dataclass(slots=True, eq=False)
class Job:
    """A run as the worker sees it. Times are seconds of the monotonic clock."""

    recipe: Recipe
    text: bytes | None
    playing: bool
    period: float
    block: Block
    members: dict[int, Member]
    weights: str = ""
    durable: bool = False
    returning: bool = False  # whether steps that were shown must be made again
    target: int | None = None
    acknowledged: int = 0
    held: bool = False
    failed: bool = False
    group: Any = None  # the engine with all members
    due: float = field(default_factory=time.monotonic)
    used: float = 0.0  # training time so far, moved up to the worker's clock whenever the run did without
    usual: float = 0.0  # seconds that a step takes as a rule
    unsaved: float = 0.0  # training time since its state was saved
    save_cost: float = 0.0  # seconds that saving took last
    shelf: Shelf | None = None
    newcomers: set[int] = field(default_factory=set)  # twins that catch up for the first time

    @property
    def building(self) -> bool:
        """Whether it is not there yet: to be built, or to catch up with its history."""
        return self.returning or (self.group is None and not self.failed)

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

    def turn_knobs(self, turned: dict[int, Knobs], version: int) -> None:
        """Train these twins with other knobs from the next step on, which is due at once: somebody waits to see it."""
        self.due = min(self.due, time.monotonic())
        for number, knobs in turned.items():
            member = self.members.get(number)
            if member is None:
                continue  # it could not join
            member.knobs, member.version = knobs, version
            member.versions[version] = knobs

    def meet(self, twins: tuple[Twin, ...]) -> None:
        """Train these twins from now on: without those that left, and with others that catch up first."""
        self.block.used = tuple(twin.lane for twin in twins)
        before, self.members = self.members, {}
        for twin in twins:
            self.members[twin.number] = member = before.get(twin.number) or Member(twin, self.block.lane(twin.lane))
            member.replan(twin)
        if self.group is None:
            return
        if before.keys() >= self.members.keys() and not self.returning:
            self.group = self.group.only(list(self.members), {m.number: m.knobs for m in self.members.values()})
        else:
            self.newcomers |= self.members.keys() - before.keys()
            self.group, self.returning = None, True

    def leave_out_newcomers(self, reason: str) -> None:
        """Twins that cannot join stand still, and say why; the others go on as if they had never been asked for."""
        for number in self.newcomers:
            self.members.pop(number).lane.tell_diverged(reason)
        self.newcomers, self.group = set(), None

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
        self.group, self.failed = self.group if keep_engine else None, True
        self.returning = False
        self.block.tell_remade(None)
        self.block.tell_status("failed", message, can_go_on=self.group is not None)
        self.pause(self.acknowledged)

    def go_on(self, serial: int) -> None:
        """Be ready again, paused, at the last good step of a run whose engine was kept."""
        if self.failed and (self.group is not None or self.building):
            self.failed = False
            for member in self.members.values():
                member.lane.tell_resumed(self.block.step + 1)
            self.block.tell_status("starting" if self.building else "ready")
        self.pause(serial)

    def recall(self, step: int) -> None:
        """Look up what is known of all steps from this one on; errors as for `Member.recall`."""
        for member in self.members.values():
            member.recall(step)

    def advance(self, diverged: type[Exception]) -> None:
        """One step of all members.

        Raises:
            diverged: of every one of them.
        """
        step = self.group.step_number + 1
        settings = {number: member.settings_at(step) for number, member in self.members.items()}
        results = self.group.step({number: knobs for number, (knobs, _) in settings.items()})
        if all(isinstance(result, diverged) for result in results.values()):
            raise next(iter(results.values()))
        for number, result in results.items():
            self.members[number].take_in(result, settings[number][1], diverged)

    def tell_return(self) -> None:
        """Say how far it has come, while steps are made again; where all are, go on from here."""
        if self.block.remade is not None:
            self.block.tell_remade(self.group.step_number)
        if self.group.step_number < self.block.step:
            return
        self.returning = False
        self.newcomers = set()
        for member in self.members.values():
            member.past = None
        self.block.tell_remade(None)
        if not self.failed:
            self.block.tell_status("ready")

    def tell_truth(self) -> None:
        """Publish the identities that the engine checked, when there are newer ones."""
        for number, member in self.members.items():
            if (identities := self.group.truth(number)) is not None:
                member.tell_truth(identities)

    def _tell(self) -> None:
        self.block.tell_playing(self.playing, self.target, self.acknowledged)


class Shelf:
    """States of a run's past, so that a twin can part from it there. At most PAST_STATES, evenly spread."""

    def __init__(self, weights: str) -> None:
        self._weights = Path(weights)
        self._every = 0

    @property
    def steps(self) -> list[int]:
        """The steps that there is a state of."""
        return sorted(int(path.suffixes[-2][1:]) for path in self._weights.parent.glob(f"{self._weights.stem}.*.past"))

    def path(self, step: int) -> Path:
        """Where the state of a step is."""
        return self._weights.with_name(f"{self._weights.stem}.{step}.past")

    def put(self, step: int) -> None:
        """Keep what was saved just now, if it is far enough from what is there."""
        steps = self.steps
        if steps and step < steps[-1] + self._every:
            return
        with suppress(OSError):
            os.link(self._weights, self.path(step))  # the file is never written again, but replaced by another
        if len(steps) < PAST_STATES:
            return
        for old in steps[::2]:
            self.path(old).unlink(missing_ok=True)
        self._every = max(2 * (steps[1] - steps[0]), self._every)

    def newest_first(self) -> list[str]:
        """The files that a run may be taken up from."""
        return [str(self._weights), *(str(self.path(step)) for step in reversed(self.steps))]


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
            job.turn_knobs(*arguments)
        elif verb == "twins":
            self._meet(job, *arguments)
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
            if job.group is None:
                self._build(job)
            else:
                self._step(job, now)
        except SettingsError as refusal:
            job.leave_out_newcomers(str(refusal)) if job.newcomers else job.fail(str(refusal))
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
        if job.group is None or job.building or job.failed or not job.unsaved:
            return
        start = time.monotonic()
        try:
            job.group.save(job.weights, job.durable)
        except OSError as cause:
            job.block.tell_unsaved(cause.strerror or str(cause))
        else:
            job.block.tell_saved(job.group.step_number)
            job.shelf.put(job.group.step_number)
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
        job = Job(**given, block=Block(memory, recipe.num_layers, recipe.num_experts), members={})
        job.meet(beginning.twins)
        job.shelf = Shelf(job.weights)
        return job

    def _meet(self, job: Job, twins: tuple[Twin, ...]) -> None:
        self.save(job)  # so that what was trained since need not be made again
        job.meet(twins)

    def _close(self, job: Job | None, keep: bool) -> None:
        if job is not None and keep:
            self.save(job)

    def _build(self, job: Job) -> None:
        # Not charged as training time: a large model would otherwise wait for all others to catch up.
        group = self._resume(job) if job.returning else None
        if job.returning:
            job.recall(0 if group is None else group.step_number + 1)
        if group is None:
            knobs = {number: member.settings_at(0)[0] for number, member in job.members.items()}
            group = self.engine.Group(job.recipe, knobs, job.text)
            for number, first in group.observe().items():  # also where it was shown already: it may draw numbers
                job.members[number].take_in(first, job.members[number].settings_at(0)[1], self.engine.TrainingDiverged)
        job.group, job.used, job.due = group, self.clock, time.monotonic()
        if job.returning:
            job.tell_return()
        else:
            job.block.tell_remade(None)
            job.block.tell_status("ready")

    def _resume(self, job: Job) -> Any:
        """The run as its newest file has it that has all twins, None if there is none.

        Raises:
            SettingsError: the file cannot be used.
        """
        lineages = {number: member.lineage for number, member in job.members.items()}
        try:
            group = self.engine.resume(job.shelf.newest_first(), lineages, job.text)
        except (OSError, SettingsError) as cause:
            raise SettingsError(f"The saved state of this run cannot be used ({cause}). {FROM_START}") from None
        if group is not None:
            job.block.tell_saved(group.step_number)
        return group

    def _step(self, job: Job, start: float) -> None:
        job.advance(self.engine.TrainingDiverged)
        if job.returning:
            job.tell_return()
        else:
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
    engine.Group(
        Recipe(), {0: Knobs()}
    )  # torch imports a second's worth more for the first: better now than for a visitor
    gc.collect()
    gc.freeze()  # torch's hundred thousand objects stay for good: no need to look at them again and again
    worker = Worker(connection, engine)
    try:
        told = {
            device: (engine.circumstances(device), engine.stacks_exactly(device))
            for device in engine.available_devices()
        }
        connection.send(told)
        worker.serve()
    except (EOFError, OSError):
        worker.save_all()  # the server is gone, and with it everyone who could watch
