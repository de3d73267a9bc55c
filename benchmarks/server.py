"""A server of one's own to measure: started as the README says, watched through /proc, ended without remains.

    with serving() as server:
        before = server.use()
        ...                                   # visit server.address
        share = server.use().cores_since(before).server
        megabytes = server.memory().workers
    assert server.remains == []

Figures are read from /proc, so this measures on Linux only. The server gets a session (in the sense of the operating
system) and a folder for temporary files of its own, so that both show afterwards what was left behind.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROC, SHARED = Path("/proc"), Path("/dev/shm")
PATIENCE = 60.0  # seconds to start, and to stop
GRACE = 5.0  # seconds for helpers of the server, which end when they notice that it is gone
TICKS = os.sysconf("SC_CLK_TCK")
LOOK = 0.4  # seconds; a worker that uses less than a tenth of a core so long has done with its imports


@dataclass(frozen=True, slots=True)
class Use:
    """Processor seconds so far."""

    clock: float
    server: float
    workers: float
    machine: float  # all processes of the machine, these among them

    def cores_since(self, before: Use) -> Use:
        """Mean share of cores between two looks: 0.25 is a quarter of one core. The clock then tells seconds."""
        seconds = self.clock - before.clock
        names = ("server", "workers", "machine")
        return Use(seconds, *((getattr(self, name) - getattr(before, name)) / seconds for name in names))


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes. Pss counts shared pages once over all who share them, so that it may be added up."""

    server_rss: float
    server: float
    workers: float
    histories: float  # of both: the rings of the runs, which fill up and then stay

    @property
    def all(self) -> float:
        """Server and workers."""
        return self.server + self.workers


class Server:
    """A running server. Made by `serving`."""

    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
        self.port = _free_port()
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.remains: list[str] | None = None  # known once it is stopped
        self._log = folder / "log"
        self._printed: str | None = None
        self._shared_before = _listing(SHARED)
        command = [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.port={self.port}"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--server.address=127.0.0.1", *options],
                cwd=ROOT,
                env=os.environ | {"TMPDIR": str(self.temporary)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the benchmark, and what belongs to the server can be told
            )

    @property
    def address(self) -> str:
        """Where a browser finds it, with a slash at the end."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        """The process that serves the pages."""
        return self._process.pid

    @property
    def printed(self) -> str:
        """What it has printed so far; all of it once it is stopped."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._printed is None else self._printed

    def family(self) -> list[int]:
        """All living processes that it started, itself first, also those that lost their parent."""
        found = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
        members = [process for process in found if _session_and_state(process) == (self.pid, True)]
        return sorted(members, key=lambda process: (process != self.pid, process))

    def workers(self) -> list[int]:
        """The processes that train."""
        return [process for process in self.family() if "spawn_main" in _command(process)]

    def use(self) -> Use:
        """Processor time so far."""
        return Use(time.monotonic(), _seconds(self.pid), sum(map(_seconds, self.workers())), _busy())

    def memory(self) -> Memory:
        """What server and workers hold now. Costs some 10 ms per process."""
        server, workers = _rollup(self.pid), [_rollup(process) for process in self.workers()]
        return Memory(
            server["Rss"],
            server["Pss"],
            sum(worker["Pss"] for worker in workers),
            sum(process["Pss_Shmem"] for process in (server, *workers)),
        )

    def stop(self) -> None:
        """End it as an operator would, note what it left behind, and end that too. A second call does nothing."""
        if self.remains is not None:
            return
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(PATIENCE)
            deaf = []
        except subprocess.TimeoutExpired:
            deaf = [f"the server did not end within {PATIENCE:.0f} s of being told to"]
        deadline = time.monotonic() + GRACE
        while (remains := self._remains()) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.remains = deaf + remains
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._printed = self.printed

    def _remains(self) -> list[str]:
        processes = [f"process {process}: {_command(process)}" for process in self.family()]
        # The folder is everybody's: what came while the server ran counts if no living process has it mapped.
        segments = [str(SHARED / name) for name in sorted(_listing(SHARED) - self._shared_before) if not _mapped(name)]
        return processes + segments + [str(path) for path in sorted(self.temporary.rglob("*")) if path.is_file()]

    def wait_until_up(self) -> None:
        """Return when it answers and its workers can train.

        Raises:
            RuntimeError: it ended, or took too long.
        """
        deadline = time.monotonic() + PATIENCE
        while not (self._answers() and self._workers_rest()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The server does not come up. It printed:\n{self.printed}")
            time.sleep(0.1)

    def _workers_rest(self) -> bool:
        before = self.use()
        time.sleep(LOOK)
        return bool(before.workers) and self.use().cores_since(before).workers < 0.1

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}_stcore/health", timeout=5):
                return True
        except OSError:
            return False


def heed_signals() -> None:
    """Let this program end like after Ctrl-C, its server first, when it is told to end or its terminal closes."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """A server on a free port, its workers ready. `options` are Streamlit's, as `--server.maxUploadSize=1`."""
    with tempfile.TemporaryDirectory(prefix="moeviz-benchmark-") as folder:
        server = Server(Path(folder), options)
        try:
            server.wait_until_up()
            yield server
        finally:
            server.stop()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _listing(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _text(path: Path) -> str:
    """A file of a process, empty if the process is gone."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _command(process: int) -> str:
    return _text(PROC / str(process) / "cmdline").replace("\0", " ").strip()


def _stat(process: int) -> list[str]:
    """The fields after the name, which may hold anything: state, parent, group, session, ..."""
    return _text(PROC / str(process) / "stat").rpartition(")")[2].split()


def _session_and_state(process: int) -> tuple[int, bool]:
    """The session that a process belongs to, and whether it lives; one that ended and waits to be read does not."""
    fields = _stat(process)
    return (int(fields[3]), fields[0] not in "ZX") if fields else (0, False)


def _seconds(process: int) -> float:
    fields = _stat(process)
    return (int(fields[11]) + int(fields[12])) / TICKS if fields else 0.0


def _busy() -> float:
    """Processor seconds of everybody since the machine started; idling and waiting for disks are no work."""
    user, nice, system, _idle, _waiting, *interrupts = map(int, _text(PROC / "stat").split("\n", 1)[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) / TICKS


def _rollup(process: int) -> dict[str, float]:
    """Megabytes by kind, 0 for whatever is not told."""
    sums = dict.fromkeys(("Rss", "Pss", "Pss_Shmem"), 0.0)
    for line in _text(PROC / str(process) / "smaps_rollup").splitlines():
        name, _, rest = line.partition(":")
        if name in sums:
            sums[name] = int(rest.split()[0]) * 1024 / 1e6
    return sums


def _mapped(segment: str) -> bool:
    return any(segment in _text(PROC / entry / "maps") for entry in os.listdir(PROC) if entry.isdigit())
