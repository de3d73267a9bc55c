"""Which worker trains whose run, for how long, and whose turn is it to come in?

A `Host` owns the worker processes and finds runs by their token. A run that nobody watches is held, later put aside:
nothing trains for a visitor who left. A worker that dies is replaced, and its runs go on in other ones.

Locks are taken in one order, a run's before the host's: the host never calls a run while it holds its own.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from moeviz import config
from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host import kin
from moeviz.host.block import LANES
from moeviz.host.limits import Limits, Share, check_alone
from moeviz.host.process import Report, WorkerProcess
from moeviz.host.run import Run, fingerprint
from moeviz.host.vault import Vault

SPARE_AFTER = 5.0  # seconds after the others: a start takes a core from whoever opens the first page
TICK = 1.0  # seconds between two looks at who is gone
LONGEST_WAIT = 60.0  # seconds between two starts of workers that die at once
SWEEP_EVERY = 3600.0


@dataclass(frozen=True, slots=True)
class Found:
    """A run that a visitor may take up again."""

    token: str
    step: int
    idle_seconds: float  # since somebody last looked at it


class ShutDown(RuntimeError):
    """Nothing is started any more."""


class Host:
    """The worker processes and the runs on them. Any thread may use it; one per server.

    Args:
        num_workers: processes; None is as the limits say.
        limits: what all runs together may take, and how long what is kept.
        engine: name of the module the workers train with.

    Raises:
        SettingsError: another server uses the data folder.
    """

    def __init__(
        self, num_workers: int | None = None, *, limits: Limits | None = None, engine: str = "moeviz.toy"
    ) -> None:
        self.limits = limits = limits or Limits()
        self.vault = Vault(Path(limits.data) if limits.data else None)
        self._num_workers = num_workers or limits.workers or _usable_cores()
        self._engine = engine
        self._lock = threading.Lock()
        self._reviving = threading.Lock()
        self._workers: list[WorkerProcess] = []
        self._spare: WorkerProcess | None = None
        self._runs: dict[str, Run] = {}
        self._assigned: dict[str, WorkerProcess] = {}
        self._admitted: dict[str, Share] = {}
        self._waiting: dict[str, Run] = {}  # in the order they came
        self._started = 0.0
        self._stillborn = 0  # how often in a row workers died before they were up
        self._not_before = 0.0
        self._reported: dict[str, Report] = {}  # what a worker said when it was up
        self._closing = threading.Event()
        self._wake, self._woken = Pipe()
        self._keeper = threading.Thread(target=self._keep_order, name="moeviz-keeper", daemon=True)

    def start(self) -> None:
        """Start the workers, and new ones for those that died, without waiting for them."""
        with self._lock:
            self._start()

    @property
    def devices(self) -> list[str]:
        """Where a run can train, as a worker reports it once it is up."""
        with self._lock:
            reports = [worker.devices for worker in self._workers]
        return next((list(devices) for devices in reports if devices), ["cpu"])

    def circumstances(self, device: str) -> dict[str, Any] | None:
        """What a receipt tells of a run that was to train on this device (versions, device and kind of machine).

        None until a worker is up, and for a device that is not here.
        """
        report = self._report(device)
        return None if report is None else report[0]

    def stacks_exactly(self, device: str) -> bool | None:
        """Whether twins on this device are to the bit the runs they are alone; None as for `circumstances`."""
        report = self._report(device)
        return None if report is None else report[1]

    def _report(self, device: str) -> Report | None:
        with self._lock:
            reports = [worker.reported for worker in self._workers]
            self._reported = found = next((report for report in reports if report), self._reported)
        return next(iter(found.values()), None) if device == "auto" else found.get(device)

    @property
    def process_ids(self) -> list[int]:
        """The worker processes."""
        with self._lock:
            return [worker.pid for worker in self._workers]

    def check(self, recipe: Recipe) -> None:
        """Refuse what this server could never train.

        Raises:
            SettingsError: it takes more than all runs together may.
        """
        check_alone(recipe, self.limits)

    def most_together(self, recipe: Recipe) -> int:
        """How many runs of this recipe can be trained together here, were there no others.

        Raises:
            SettingsError: not even one.
        """
        self.check(recipe)
        return max(count for count in range(1, LANES + 1) if Share.of(recipe, count).fits(self.limits))

    def create(
        self,
        recipe: Recipe,
        knobs: Knobs,
        text: bytes | None = None,
        twins: Sequence[Mapping[str, Any]] = (),
        schedule: Sequence[tuple[int, Knobs]] = (),
    ) -> Run:
        """A new run at step 0, paused, on the worker with the fewest runs; or waiting, where the server is full.

        Args:
            recipe, knobs, text: what to train.
            twins: changes of each that begins with it: as many as can be stacked, where a visitor may add fewer by hand
                (`Run.add_twin`).
            schedule: (first step, knobs): settings that the run takes at these steps by itself, in ascending order.

        Raises:
            SettingsError: recipe and knobs do not fit each other, or not this server; or the steps do not ascend.
        """
        for own in (knobs, *(later for _, later in schedule)):
            config.check(recipe, own)
        if any(step <= before for (before, _), (step, _) in pairwise([(0, knobs), *schedule])):
            raise SettingsError("Settings can be changed from step 1 on, in the order of the steps. Sort the schedule.")
        if 1 + len(twins) > (most := self.most_together(recipe)):
            raise SettingsError(f"{1 + len(twins)} runs of this size cannot be trained together here. Take {most}.")
        base = kin.first(knobs, schedule)
        run = Run(self, recipe, knobs, text, twins=(base, *kin.together(recipe, knobs, twins)[1:]))
        with self._lock:
            self._runs[run.token] = run
        return run

    def get(self, token: str) -> Run | None:
        """The run with this token, taken up from the vault if it was put aside; None if there is none (any more)."""
        run = self._open(token)
        if run is not None or not token or self._closing.is_set():
            return run
        with self._reviving:
            return self._open(token) or self._revive(token)

    def is_near(self, token: str) -> bool:
        """Whether `get` has an answer without reading files."""
        return self._open(token) is not None

    def runs_of(self, visitor: str) -> list[Found]:
        """What a visitor has here, the newest first; runs without a step are not worth a word."""
        owner = fingerprint(visitor)
        here = [run for run in list(self._runs.values()) if run.owner == owner]
        found = [Found(run.token, run.state().step, run.idle_seconds) for run in here]
        tokens = {run.token for run in here}
        found += [
            Found(kept.token, kept.step, self.vault.age(kept))
            for kept in self.vault.kept_for(owner)
            if kept.token not in tokens
        ]
        return sorted((one for one in found if one.step > 0), key=lambda one: one.idle_seconds)

    def shutdown(self) -> None:
        """Put every run aside and end every worker process. The host cannot be used again."""
        self._closing.set()
        atexit.unregister(self.shutdown)
        self._wake.send_bytes(b"!")
        for run in list(self._runs.values()):
            run.put_aside()
        with self._lock:
            workers, self._workers = self._workers, []
            if self._spare is not None:
                workers.append(self._spare)
            self._spare = None
        for worker in workers:
            worker.stop()
        if self._keeper.is_alive() and self._keeper is not threading.current_thread():
            self._keeper.join()
        self.vault.close()

    def admit(self, run: Run) -> bool:
        """Give a run its place, or put it at the end of the queue. A place it has is exchanged for the new one."""
        with self._lock:
            self._admitted.pop(run.token, None)
            self._waiting.pop(run.token, None)
            if not self._watched_in_line() and self._fits(run):
                self._admitted[run.token] = run.share
                return True
            self._waiting[run.token] = run
            return False

    def grow(self, run: Run, share: Share) -> None:
        """Have a run take another share of the server than it has.

        Raises:
            SettingsError: there is no room; it has what it had.
        """
        with self._lock:
            others = [taken for token, taken in self._admitted.items() if token != run.token]
            if not sum(others, share).fits(self.limits):
                raise SettingsError("This server is full: there is no room for another twin. Try again later.")
            if run.token in self._admitted:
                self._admitted[run.token] = share

    def ahead_of(self, run: Run) -> int:
        """How many runs come in before this one."""
        with self._lock:
            line = self._watched_in_line()
            return line.index(run) if run in line else len(line)

    def assign(self, run: Run) -> WorkerProcess:
        """The worker that trains a run: the one it has while that lives, else the one with the fewest runs."""
        with self._lock:
            worker = self._assigned.get(run.token)
            if worker is None or not worker.alive:
                self._start()
                runs = Counter(other for token, other in self._assigned.items() if token != run.token)
                worker = min(self._workers, key=lambda candidate: runs[candidate])
                self._assigned[run.token] = worker
            return worker

    def forget(self, run: Run) -> None:
        """Let go of a closed run; its place is free."""
        with self._lock:
            if self._runs.get(run.token) is run:
                del self._runs[run.token]
            if run.token not in self._runs:  # else it has been taken up again since, and the places are that one's
                for places in (self._assigned, self._admitted, self._waiting):
                    places.pop(run.token, None)
        self._let_in()

    def _open(self, token: str) -> Run | None:
        """The run with this token, unless it is just being put aside or given up."""
        run = self._runs.get(token)
        return None if run is None or run.closed else run

    def _revive(self, token: str) -> Run | None:
        try:
            saved = self.vault.load(token)
            if saved is None:
                return None
            self.check(saved.recipe)
        except SettingsError as refusal:
            print(f"moeviz: {refusal}", file=sys.stderr)
            return None
        run = Run(self, saved.recipe, saved.knobs, saved.text, saved)
        with self._lock:
            self._runs[token] = run
        run.keep()
        return run

    def _watched_in_line(self) -> list[Run]:
        return [run for run in self._waiting.values() if run.idle_seconds < self.limits.pause_after]

    def _fits(self, run: Run) -> bool:
        return sum(self._admitted.values(), run.share).fits(self.limits)

    def _let_in(self) -> None:
        """As many from the head of the queue as there is room for. Who is not looking keeps its place in line."""
        while not self._closing.is_set():
            with self._lock:
                line = self._watched_in_line()
                if not line or not self._fits(line[0]):
                    return
                run = line[0]
                del self._waiting[run.token]
                self._admitted[run.token] = run.share
            run.launch()

    def _start(self) -> None:
        if self._closing.is_set():
            raise ShutDown("This host is shut down. Make a new one.")
        if not self._keeper.is_alive():
            self._keeper.start()
            atexit.register(self.shutdown)
        living = [worker for worker in self._workers if worker.alive]
        if self._must_wait(living):
            return
        if len(living) < self._num_workers and self._spare is not None:
            living.append(self._spare)
            self._spare = None
        missing = self._num_workers - len(living)
        if missing:
            self._started = time.monotonic()
        self._workers = living + [WorkerProcess(self._engine) for _ in range(missing)]

    def _must_wait(self, living: list[WorkerProcess]) -> bool:
        """Where workers die before they are up, the next is started later and later: whatever is wrong with this
        machine, starting processes as fast as it can would make it worse."""
        if any(worker.devices for worker in living):
            self._stillborn = 0
        if len(living) == len(self._workers) or any(worker.devices for worker in self._workers):
            return False
        if self._not_before <= self._started:
            self._stillborn += 1
            self._not_before = time.monotonic() + min(2.0**self._stillborn, LONGEST_WAIT)
        return time.monotonic() < self._not_before

    def _keep_order(self) -> None:
        tick = min(TICK, self.limits.pause_after / 4 or TICK, self.limits.save_every or TICK)
        swept = time.monotonic()
        while not self._closing.is_set():
            with self._lock:
                processes = {worker.sentinel: worker for worker in self._workers if worker.alive}
            wait([*processes, self._woken], timeout=tick)
            if self._closing.is_set():
                return
            try:
                self._mind_the_dead()
                self._mind_the_runs()
            except ShutDown:  # meanwhile
                return
            if time.monotonic() - swept >= SWEEP_EVERY:
                swept = time.monotonic()
                self.vault.sweep(self.limits.keep_days * 86400, but=set(self._runs))

    def _mind_the_dead(self) -> None:
        with self._lock:
            lost = [
                self._runs[token]
                for token, worker in self._assigned.items()
                if not worker.alive and token in self._runs
            ]
            if lost or not all(worker.alive for worker in self._workers):
                self._start()
            elif self._spare is None and time.monotonic() - self._started > SPARE_AFTER:
                # The next to take over, with torch in its memory already: a start takes seconds, a class waits.
                self._spare = WorkerProcess(self._engine)
        for run in lost:
            run.take_up()

    def _mind_the_runs(self) -> None:
        crowded = bool(self._waiting)
        runs = list(self._runs.values())  # other threads add and remove
        for run in sorted(runs, key=lambda run: -run.idle_seconds):
            idle = run.idle_seconds
            in_the_way = crowded and run.token in self._admitted and idle >= self.limits.pause_after and self._crowded()
            if idle >= self.limits.release_after or in_the_way:
                run.put_aside()
                continue
            run.hold_if_unwatched(self.limits.pause_after)
            run.keep_if_due(self.limits.save_every)
        self._let_in()

    def _crowded(self) -> bool:
        with self._lock:
            line = self._watched_in_line()
            return bool(line) and not self._fits(line[0])


def _usable_cores() -> int:
    count = getattr(os, "process_cpu_count", os.cpu_count)
    return count() or 1
