"""How does the server start a worker, talk to it and notice its death?"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from types import ModuleType
from typing import Any

from moeviz.host import worker
from moeviz.host.block import SharedBytes

PATIENCE = 2.0  # seconds a worker has to finish its step when told to stop
# Of a device: what a receipt tells of a run on it (`moeviz.machine`), and whether twins there are to the bit what they
# are alone (`moeviz.stacking`).
Report = tuple[dict[str, Any], bool]


class WorkerProcess:
    """The server's end of one worker process. Any thread may use it."""

    def __init__(self, engine_name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe(duplex=True)
        self._process = context.Process(target=worker.main, args=(theirs, engine_name), name="moeviz", daemon=True)
        self._sending, self._receiving = threading.Lock(), threading.Lock()
        self._reported: dict[str, Report] | None = None
        self._ended = False
        with quiet_start():
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """Process id."""
        return self._process.pid

    @property
    def sentinel(self) -> int:
        """What `multiprocessing.connection.wait` sees when the process ends."""
        return self._process.sentinel

    @property
    def alive(self) -> bool:
        """Whether the process still runs. Costs one system call."""
        if not self._ended and wait([self._process.sentinel], timeout=0):
            self._ended = True
        return not self._ended

    @property
    def devices(self) -> list[str] | None:
        """Devices the worker can train on, the best first; None until it is up."""
        reported = self.reported
        return None if reported is None else list(reported)

    @property
    def reported(self) -> dict[str, Report] | None:
        """What it says of each of these devices, None until it is up."""
        with self._receiving:
            try:
                if self._reported is None and self._connection.poll():
                    self._reported = self._connection.recv()
            except (EOFError, OSError):
                return None  # it died before it was up; `alive` says so to whoever needs it
            return self._reported

    def send(self, *command: Any, memory: SharedBytes | None = None) -> None:
        """Send a command, and the memory it announces. To a dead worker nothing is sent: others take up its runs."""
        try:
            with self._sending:
                self._connection.send(command)
                if memory is not None:
                    memory.send(self._connection)
        except OSError:
            self._process.join(timeout=PATIENCE)  # a broken pipe comes just before the death it announces

    def stop(self) -> None:
        """End the process: kindly, then firmly."""
        if self.alive and self.devices is not None:  # one that still imports would not hear it
            self.send("stop")
            self._process.join(timeout=PATIENCE)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._ended = True
        with self._sending, self._receiving:
            self._connection.close()


@contextmanager
def quiet_start() -> Iterator[None]:
    """A new process that neither runs the main script again nor shows a traceback on Ctrl-C while it imports.

    Under Streamlit `__main__` is the app, which a spawned process would import, streamlit and all.
    """
    masks = hasattr(signal, "pthread_sigmask")
    if masks:
        resource_tracker.ensure_running()  # its own start would undo the mask
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    main, blank = sys.modules["__main__"], ModuleType("__main__")
    sys.modules["__main__"] = blank
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if sys.modules["__main__"] is blank:  # else a script thread has put its own there meanwhile
            sys.modules["__main__"] = main
