"""Which worker trains whose run, and for how long?

A `Host` owns the worker processes and finds runs by their token. A run that nobody watches is held, later released:
nothing trains for a visitor who left.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import Counter

from moeviz import config
from moeviz.config import Knobs, Recipe
from moeviz.host.process import WorkerProcess
from moeviz.host.run import Run

PAUSE_AFTER = 20.0
RELEASE_AFTER = 900.0


class Host:
    """The worker processes and the runs on them. Any thread may use it; one per server.

    Args:
        num_workers: processes; None is one per core.
        pause_after: seconds after which a run nobody touches is held until it is touched again.
        release_after: seconds after which it is closed.
        engine: name of the module the workers train with.
    """

    def __init__(
        self,
        num_workers: int | None = None,
        *,
        pause_after: float = PAUSE_AFTER,
        release_after: float = RELEASE_AFTER,
        engine: str = "moeviz.engine",
    ) -> None:
        self._num_workers = num_workers or _usable_cores()
        self._pause_after, self._release_after = pause_after, release_after
        self._engine = engine
        self._lock = threading.Lock()
        self._workers: list[WorkerProcess] = []
        self._runs: dict[str, Run] = {}
        self._assigned: dict[str, WorkerProcess] = {}
        self._closing = threading.Event()
        self._reaper = threading.Thread(target=self._reap, name="moeviz-reaper", daemon=True)

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

    @property
    def process_ids(self) -> list[int]:
        """The worker processes."""
        with self._lock:
            return [worker.pid for worker in self._workers]

    def create(self, recipe: Recipe, knobs: Knobs, text: bytes | None = None) -> Run:
        """A new run at step 0, paused, on the worker with the fewest runs.

        Raises:
            SettingsError: recipe and knobs do not fit each other.
        """
        config.check(recipe, knobs)
        run = Run(self, recipe, knobs, text)
        with self._lock:
            self._runs[run.token] = run
        return run

    def get(self, token: str) -> Run | None:
        """The run with this token, None if there is none (any more)."""
        return self._runs.get(token)

    def shutdown(self) -> None:
        """End every worker process. The runs are lost; the host cannot be used again."""
        self._closing.set()
        atexit.unregister(self.shutdown)
        with self._lock:
            workers, self._workers = self._workers, []
            self._runs.clear()
            self._assigned.clear()
        for worker in workers:
            worker.stop()
        if self._reaper.is_alive() and self._reaper is not threading.current_thread():
            self._reaper.join()

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
        """Let go of a closed run."""
        with self._lock:
            self._runs.pop(run.token, None)
            self._assigned.pop(run.token, None)

    def _start(self) -> None:
        if self._closing.is_set():
            raise RuntimeError("This host is shut down. Make a new one.")
        if not self._reaper.is_alive():
            self._reaper.start()
            atexit.register(self.shutdown)
        living = [worker for worker in self._workers if worker.alive]
        missing = self._num_workers - len(living)
        self._workers = living + [WorkerProcess(self._engine) for _ in range(missing)]

    def _reap(self) -> None:
        interval = min(1.0, self._pause_after / 4)
        while not self._closing.wait(interval):
            for run in list(self._runs.values()):
                if run.idle_seconds >= self._release_after:
                    run.close()
                else:
                    run.hold_if_unwatched(self._pause_after)


def _usable_cores() -> int:
    count = getattr(os, "process_cpu_count", os.cpu_count)
    return count() or 1
