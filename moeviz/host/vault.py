"""Where does a run wait while it has no process, or no server?

In files of the data folder: `NAME.BEGINNING.weights`, which its worker writes (`moeviz.checkpoint`), a few older ones
as `NAME.BEGINNING.STEP.past`, and `NAME.run`, which the server writes: settings, text and the histories of all
twins, as safetensors. All are written whole or not at all, and reading them executes nothing. The name is a hash of the
run's token: a list of the folder opens none.

Without a folder of the operator's choice a temporary one is made. It serves a lost worker and a visitor who comes back
late, and goes with the server.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host.block import Course, Parted
from moeviz.host.kin import Kin
from moeviz.snapshot import record_dtype

try:
    import fcntl
except ImportError:  # Windows: two servers in one folder, and what a killed one left, go unnoticed there
    fcntl = None

FORMAT = 4
TEMPORARY = "moeviz-"
LOCK = "lock"


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """A run as its file has it."""

    token: str
    owner: str | None
    recipe: Recipe
    twins: tuple[Kin, ...]  # the base first
    numbers: int  # of twins that were given so far
    text: bytes | None
    epoch: int
    beginning: int  # what its weights are filed under
    playing: bool
    rows: dict[int, np.ndarray]  # histories, by the twins' numbers
    parted: dict[int, Parted | None]
    courses: dict[int, Course] = field(default_factory=dict)
    trained_by: tuple[dict[str, Any], ...] = ()  # versions, device and machine; of several, one after the other

    @property
    def knobs(self) -> Knobs:
        """The base's settings in force."""
        return self.twins[0].knobs

    @property
    def step(self) -> int:
        """The newest step of its histories."""
        return max((int(rows["step"][-1]) for rows in self.rows.values() if len(rows)), default=0)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of a saved run without reading its history."""

    token: str
    owner: str | None
    step: int
    saved_at: float  # seconds of the vault's clock


class Vault:
    """The data folder. Any thread may use it.

    Args:
        folder: the operator's; None makes a temporary one when it is first needed.

    Raises:
        SettingsError: another server uses this folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.trouble = ""  # why the operator's folder is not used, in a sentence
        self._lock = threading.RLock()
        self._kept: dict[str, Kept] = {}
        self._held: Any = None  # the open lock file
        self._began = time.time(), time.monotonic()
        self.durable = folder is not None
        self._folder: Path | None = None
        if folder is not None:
            self._open(folder)

    @property
    def folder(self) -> Path:
        """Where the files are."""
        with self._lock:
            if self._folder is None:
                _remove_what_dead_servers_left()
                self._folder = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{os.getpid()}-"))
                self._hold(self._folder)
            return self._folder

    def weights(self, token: str, beginning: int) -> Path:
        """Where the worker puts the state of one beginning of a run."""
        return self.folder / f"{_name(token)}.{beginning}.weights"

    def save(self, saved: Saved) -> None:
        """Write a run's file, in place of an older one. Weights of its earlier beginnings go.

        Raises:
            OSError: there is no place for it; an older file is as it was.
        """
        about = {
            "format": FORMAT,
            "token": saved.token,
            "owner": saved.owner,
            "recipe": asdict(saved.recipe),
            "twins": [asdict(twin) for twin in saved.twins],
            "numbers": saved.numbers,
            "parted": saved.parted,
            "courses": saved.courses,
            "trained_by": saved.trained_by,
            "epoch": saved.epoch,
            "beginning": saved.beginning,
            "playing": saved.playing,
            "step": saved.step,
            "row_bytes": saved.rows[0].dtype.itemsize,
        }
        tensors = {f"rows/{number}": np.frombuffer(rows.tobytes(), np.uint8) for number, rows in saved.rows.items()}
        if saved.text is not None:
            tensors["text"] = np.frombuffer(saved.text, np.uint8)
        data = safetensors.numpy.save(tensors, metadata={"moeviz": json.dumps(about)})
        path = self._run_file(saved.token)
        part = path.with_suffix(".part")
        with self._lock:
            try:
                with open(part, "wb") as file:
                    file.write(data)
                    if self.durable:
                        file.flush()
                        os.fsync(file.fileno())
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
            self._kept[saved.token] = Kept(saved.token, saved.owner, saved.step, self._now())
        current = f"{_name(saved.token)}.{saved.beginning}."
        for ending in ("weights", "past"):
            for old in self.folder.glob(f"{_name(saved.token)}.*.{ending}"):
                if not old.name.startswith(current):
                    old.unlink(missing_ok=True)

    def load(self, token: str) -> Saved | None:
        """The run of a token, None if there is none.

        Raises:
            SettingsError: its file is damaged or of another version.
        """
        path = self._run_file(token)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as cause:
            raise SettingsError(f"The saved run cannot be read ({cause.strerror}). Begin a new one.") from None
        try:
            about, tensors = _about(data), safetensors.numpy.load(data)
            return _saved(about, tensors)
        except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as cause:
            raise SettingsError(f"The saved run is damaged or of another version ({cause}). Begin a new one.") from None

    def kept_for(self, owner: str) -> list[Kept]:
        """The saved runs of a visitor, the newest first."""
        with self._lock:
            mine = [kept for kept in self._kept.values() if kept.owner == owner]
        return sorted(mine, key=lambda kept: -kept.saved_at)

    def age(self, kept: Kept) -> float:
        """Seconds since a run was saved."""
        return max(0.0, self._now() - kept.saved_at)

    def forget(self, token: str) -> None:
        """Remove a run's files."""
        with self._lock:
            self._kept.pop(token, None)
            if self._folder is not None:
                for path in self._folder.glob(f"{_name(token)}.*"):
                    path.unlink(missing_ok=True)

    def sweep(self, keep_seconds: float, but: set[str]) -> None:
        """Remove runs that nobody came back for, except those of the tokens in `but`."""
        now = self._now()
        with self._lock:
            old = [kept.token for kept in self._kept.values() if now - kept.saved_at > keep_seconds]
        for token in old:
            if token not in but:
                self.forget(token)

    def close(self) -> None:
        """Let go of the folder; a temporary one is removed."""
        with self._lock:
            if self._held is not None:
                self._held.close()
                self._held = None
            if self._folder is not None and not self.durable:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _open(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as cause:
            self.trouble = (
                f"The data folder {folder} cannot be used ({cause.strerror}): runs are kept in a temporary one."
            )
            self.durable = False
            return
        if not self._hold(folder):
            raise SettingsError(f"The data folder {folder} is used by another server. Give each server one of its own.")
        self._folder = folder
        self._kept = {kept.token: kept for path in folder.glob("*.run") if (kept := _kept(path))}

    def _hold(self, folder: Path) -> bool:
        """Mark a folder as in use for as long as this process lives; False if another one has."""
        held = _locked(folder)
        if held is None:
            return False
        self._held = held
        return True

    def _now(self) -> float:
        # Wall-clock time that a jump of the clock cannot move: neither keeps runs for ever nor throws all away.
        wall, steady = self._began
        return wall + time.monotonic() - steady

    def _run_file(self, token: str) -> Path:
        return self.folder / f"{_name(token)}.run"


def _name(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:40]


def _about(data: bytes) -> dict[str, Any]:
    """The description in the header: 8 bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["moeviz"])
    if about["format"] != FORMAT:
        raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
    return about


def _saved(about: dict[str, Any], tensors: dict[str, np.ndarray]) -> Saved:
    recipe = Recipe(**about["recipe"])
    dtype = record_dtype(recipe.num_layers, recipe.num_experts)
    if about["row_bytes"] != dtype.itemsize:
        raise ValueError(f"rows of {about['row_bytes']} bytes, this version has {dtype.itemsize}")
    return Saved(
        token=about["token"],
        owner=about["owner"],
        recipe=recipe,
        twins=tuple(_twin(twin) for twin in about["twins"]),
        numbers=about["numbers"],
        text=tensors["text"].tobytes() if "text" in tensors else None,
        epoch=about["epoch"],
        beginning=about["beginning"],
        playing=about["playing"],
        rows={twin["number"]: _rows(tensors, twin["number"], dtype) for twin in about["twins"]},
        parted={int(number): parted and Parted(*parted) for number, parted in about["parted"].items()},
        courses={int(number): _course(*course) for number, course in about["courses"].items()},
        trained_by=tuple(about["trained_by"]),
    )


def _course(turns: list[list[int]], whole: bool, resumed: int | None) -> Course:
    return Course(tuple((step, version) for step, version in turns), whole, resumed)


def _rows(tensors: dict[str, np.ndarray], number: int, dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(tensors[f"rows/{number}"].tobytes(), dtype)


def _twin(about: dict[str, Any]) -> Kin:
    pairs = {name: tuple((first, second) for first, second in about[name]) for name in ("labels", "plan", "lineage")}
    versions = {int(number): Knobs(**knobs) for number, knobs in about["versions"].items()}
    return Kin(**about | pairs | {"versions": versions})


def _kept(path: Path) -> Kept | None:
    """What the header of a file says; None for one that says nothing."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            about = _about(start + file.read(int.from_bytes(start, "little") & 0xFFFFFFF))
        return Kept(about["token"], about["owner"], about["step"], path.stat().st_mtime)
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _locked(folder: Path) -> Any:
    """An open file that no other process has while this one holds it; None if one has it."""
    file = open(folder / LOCK, "wb")  # noqa: SIM115, held open on purpose
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _remove_what_dead_servers_left() -> None:
    """Temporary folders of servers that were killed: nobody holds their lock."""
    if fcntl is None:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        try:
            if folder.is_dir() and (folder / LOCK).exists() and (held := _locked(folder)):
                shutil.rmtree(folder, ignore_errors=True)
                held.close()
        except OSError:
            continue  # somebody else's
