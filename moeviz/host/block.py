"""How does what happened travel from the process that trains to the process that serves pages?

Through one block of shared memory per beginning of a run: a small state header, then a lane for each twin that the run
may have, with the newest checked identities as text and the levels of a `History`. The server creates it, one worker
writes it, and any number of server threads read it without a lock or a system call. Lanes that no twin uses are never
touched and take no memory.

The memory has no name (POSIX: an unlinked file whose descriptor travels through the pipe), so that nothing is left
behind however the processes end, and the small /dev/shm of a container does not limit it.
"""

from __future__ import annotations

import bisect
import json
import mmap
import os
import secrets
import socket
import tempfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from moeviz.config import MAX_TWINS
from moeviz.snapshot import HEADER, History

LANES = MAX_TWINS
BYTES_PER_LANE = 4_000_000
FEWEST_ROWS, MOST_ROWS = 450, 10_000
MESSAGE_BYTES = 1024
TRUTH_BYTES = 8192
STATUSES = ("starting", "ready", "failed")
TRUTH_TRIES = 1_000  # a look takes microseconds, as does the writing it may fall into
NO_TARGET = NEVER = -1
MOST_TURNS = 256  # of its settings that a twin's course tells of

# All eight bytes wide and aligned, so that a reader sees either the old or the new value of each.
STATE = np.dtype(
    [
        ("status", "<i8"),
        ("acknowledged", "<i8"),  # number of the last play or pause command that took effect
        ("target", "<i8"),
        ("playing", "<i8"),
        ("can_go_on", "<i8"),  # whether a failed run still has the state before the step that failed
        ("training", "<i8"),  # whether a step is being made: when a worker dies, this was the run it died of
        ("saved", "<i8"),  # the step of its newest checkpoint
        ("remade", "<i8"),  # the newest step that was made again, while twins that came later catch up
        ("message", f"S{MESSAGE_BYTES}"),
        ("unsaved", f"S{MESSAGE_BYTES}"),  # why the newest attempt to save it failed
    ]
)
# What is one twin's own, beside its history.
LANE = np.dtype(
    [
        ("failed", "<i8"),  # whether it ever stopped alone: then steps are missing in its history
        ("parted", "<i8"),  # the first step at which it routed a token differently from the first twin
        ("parted_token", "<i8"),
        ("resumed", "<i8"),  # the first step that was made after it had diverged
        ("turned", "<i8"),  # how many turns there were; one more than fit when there were too many
        ("turns", "<i8", (MOST_TURNS, 2)),  # the first step under each settings, and their number
        ("diverged", f"S{MESSAGE_BYTES}"),  # why it stands still beside the others
    ]
)
# A text that is written over: a reader believes it only when its bytes have the checksum, and looks again if not.
TRUTH = np.dtype([("serial", "<i8"), ("checksum", "<i8"), ("length", "<i8"), ("text", "u1", TRUTH_BYTES)])


def ring_capacity(num_layers: int, num_experts: int) -> int:
    """How many of its newest steps a twin keeps, every one, if its history as a whole takes up to `BYTES_PER_LANE`.

    At least FEWEST_ROWS: a recipe of more than 500 experts in all takes more, up to 16 MB, a fraction of its model.
    """
    capacities = range(FEWEST_ROWS, MOST_ROWS + 1)
    fitting = bisect.bisect_right(
        capacities, BYTES_PER_LANE, key=lambda rows: History.bytes_needed(num_layers, num_experts, rows)
    )
    return capacities[max(fitting - 1, 0)]


@dataclass(frozen=True, slots=True)
class Told:
    """The worker's side of the truth at one moment."""

    acknowledged: int
    status: str
    message: str
    playing: bool
    target: int | None
    can_go_on: bool
    training: bool
    saved: int | None
    unsaved: str


class Parted(NamedTuple):
    """Where a twin's routing and the first twin's were different for the first time."""

    step: int
    token: int  # its place in the batch


class Course(NamedTuple):
    """Under which settings a twin made its steps. A history that was thinned cannot tell."""

    turns: tuple[tuple[int, int], ...] = ()  # (first step, number of the settings)
    whole: bool = True  # whether these are all
    resumed: int | None = None  # the first step that was made after it had diverged

    def until(self, step: int) -> Course:
        """What it was up to this step."""
        turns = tuple(turn for turn in self.turns if turn[0] <= step)
        resumed = self.resumed if self.resumed is not None and self.resumed <= step else None
        return Course(turns, self.whole or len(turns) < len(self.turns), resumed)


class Lane:
    """One twin's part of a block."""

    def __init__(self, view: memoryview, num_layers: int, num_experts: int) -> None:
        self._own = np.frombuffer(view, LANE, count=1)
        self._truth = np.frombuffer(view, TRUTH, count=1, offset=LANE.itemsize)
        begin = LANE.itemsize + TRUTH.itemsize
        self._header = np.frombuffer(view, HEADER, count=1, offset=begin)
        self.history = History(num_layers, num_experts, ring_capacity(num_layers, num_experts), view[begin:])

    def begin(
        self,
        epoch: int,
        rows: np.ndarray | None = None,
        parted: Parted | None = None,
        course: Course | None = None,
    ) -> None:
        """Server side, before the worker knows the lane: forget who had it, and give it a past."""
        self.history.clear()
        self._header["epoch"] = epoch
        self._truth["serial"] = 0
        self._own["failed"] = False
        self._own["diverged"] = b""
        self._own["parted"] = NEVER
        self._take_course(course or Course())
        if parted is not None:
            self.tell_parted(parted.step, parted.token)
        if rows is not None and len(rows):
            self.history.restore(rows)

    @property
    def parted(self) -> Parted | None:
        """Where it parted from the first twin; None while it has not."""
        step = int(self._own["parted"][0])
        return None if step == NEVER else Parted(step, int(self._own["parted_token"][0]))

    @property
    def diverged(self) -> str:
        """Why it stands still while the others go on; empty if it does not."""
        return bytes(self._own["diverged"][0]).decode(errors="ignore")

    @property
    def ever_failed(self) -> bool:
        """Whether it stood still once, so that its history has gaps."""
        return bool(self._own["failed"][0])

    @property
    def course(self) -> Course:
        """Under which settings its steps were made."""
        resumed, count = int(self._own["resumed"][0]), int(self._own["turned"][0])
        turns = tuple((step, version) for step, version in self._own["turns"][0, : min(count, MOST_TURNS)].tolist())
        return Course(turns, count <= MOST_TURNS, None if resumed == NEVER else resumed)

    def _take_course(self, course: Course) -> None:
        self._own["turned"] = 0
        for step, version in course.turns:
            self.tell_turn(step, version)
        self._own["turned"] += not course.whole
        self._own["resumed"] = NEVER if course.resumed is None else course.resumed

    def tell_turn(self, step: int, version: int) -> None:
        """Worker side, before the row of a step is written: publish that it was made under other settings.

        A worker that died in between leaves a turn that never acted: the next turn, at that step, takes its place.
        """
        turns, count = self._own["turns"][0], int(self._own["turned"][0])
        if count > MOST_TURNS:
            return
        while count and turns[count - 1, 0] >= step:
            count -= 1
        if not count or turns[count - 1, 1] != version:
            if count < MOST_TURNS:
                turns[count] = step, version
            count += 1
        self._own["turned"] = count

    def tell_resumed(self, step: int) -> None:
        """Worker side: publish that it goes on after it had diverged, with this step; the first time counts."""
        if self._own["resumed"][0] == NEVER:
            self._own["resumed"] = step

    def tell_parted(self, step: int, token: int) -> None:
        """Worker side: publish the first difference in routing."""
        self._own["parted_token"] = token
        self._own["parted"] = step

    def tell_diverged(self, message: str) -> None:
        """Worker side: publish why this twin stands still, or by an empty message that it goes on."""
        self._own["failed"] |= bool(message)
        self._own["diverged"] = message.encode()[:MESSAGE_BYTES]

    def tell_truth(self, identities: list[dict[str, Any]]) -> None:
        """Worker side: publish what was checked on the newest batch that was, in place of what was there.

        Raises:
            ValueError: it does not fit.
        """
        text = json.dumps(identities, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > TRUTH_BYTES:
            raise ValueError(f"{len(text)} bytes of identities do not fit into {TRUTH_BYTES}")
        truth = self._truth
        serial = int(truth["serial"][0]) + 1
        truth["text"][0, : len(text)] = np.frombuffer(text, np.uint8)
        truth["length"], truth["checksum"], truth["serial"] = len(text), _checksum(serial, text), serial

    def truth(self) -> tuple[int, list[dict[str, Any]]]:
        """How often identities were published, and the newest; (0, []) before there are any, and while a worker that
        died in the middle of writing leaves none that can be read."""
        for _ in range(TRUTH_TRIES):
            serial, length = int(self._truth["serial"][0]), int(self._truth["length"][0])
            if serial == 0:
                break
            text = self._truth["text"][0, : min(length, TRUTH_BYTES)].tobytes()
            if _checksum(serial, text) == int(self._truth["checksum"][0]):
                return serial, json.loads(text)
        return 0, []


class Block:
    """Shared memory of one beginning of a run. Written by its worker only; the memory goes with its last reader."""

    def __init__(self, memory: mmap.mmap, num_layers: int, num_experts: int) -> None:
        self._view = memoryview(memory)
        self._shape = num_layers, num_experts
        self._state = np.frombuffer(self._view, STATE, count=1)
        self._lanes: dict[int, Lane] = {}
        self.used: tuple[int, ...] = (0,)  # lanes; each side of the block knows for itself

    def lane(self, place: int) -> Lane:
        """The part of a twin."""
        if place not in self._lanes:
            begin, size = STATE.itemsize + place * lane_size(*self._shape), lane_size(*self._shape)
            self._lanes[place] = Lane(self._view[begin : begin + size], *self._shape)
        return self._lanes[place]

    @property
    def history(self) -> History:
        """The first twin's, and of a run alone its only one."""
        return self.lane(0).history

    @property
    def epoch(self) -> int:
        """Which beginning of the run this is."""
        return self.history.epoch

    @property
    def step(self) -> int:
        """The newest step of any twin, 0 while there is none."""
        return max(0, *(self.lane(place).history.last_step for place in self.used))

    @property
    def remade(self) -> int | None:
        """How far twins that came later have caught up with what is shown; None when there are none."""
        step = int(self._state["remade"][0])
        return None if step == NEVER else step

    def _text(self, name: str) -> str:
        return bytes(self._state[name][0]).decode(errors="ignore")

    def begin(self, epoch: int, playing: bool) -> None:
        """Server side, before the worker knows the block: number this beginning and say whether it plays at once."""
        self.lane(0).begin(epoch)
        self._state["remade"] = NEVER
        self._state["target"] = NO_TARGET
        self._state["playing"] = playing
        self._state["saved"] = NEVER

    def told(self) -> Told:
        """What the worker last wrote. The order of reading is the reverse of the order of writing."""
        acknowledged = int(self._state["acknowledged"][0])
        status = STATUSES[int(self._state["status"][0])]
        target = int(self._state["target"][0])
        playing = bool(self._state["playing"][0])
        can_go_on = bool(self._state["can_go_on"][0])
        training, saved = bool(self._state["training"][0]), int(self._state["saved"][0])
        return Told(
            acknowledged=acknowledged,
            status=status,
            message=self._text("message"),
            playing=playing,
            target=None if target == NO_TARGET else target,
            can_go_on=can_go_on,
            training=training,
            saved=None if saved == NEVER else saved,
            unsaved=self._text("unsaved"),
        )

    def tell_playing(self, playing: bool, target: int | None, acknowledged: int) -> None:
        """Worker side: publish whether the run plays, and the last command that had a say in it."""
        # A reader that sees the end of a target must not still see the run playing, and the other way round.
        for name in ("target", "playing") if playing else ("playing", "target"):
            self._state[name] = playing if name == "playing" else NO_TARGET if target is None else target
        self._state["acknowledged"] = acknowledged

    def tell_status(self, status: str, message: str = "", can_go_on: bool = False) -> None:
        """Worker side: publish what became of the run, and whether a failed one can go on from before its failure."""
        self._state["message"] = message.encode()[:MESSAGE_BYTES]
        self._state["can_go_on"] = can_go_on
        self._state["status"] = STATUSES.index(status)

    def tell_training(self, training: bool) -> None:
        """Worker side: publish that a step begins or has ended."""
        self._state["training"] = training

    def tell_saved(self, step: int) -> None:
        """Worker side: publish that the run was saved as it was after this step."""
        self._state["saved"] = step
        self._state["unsaved"] = b""

    def tell_unsaved(self, reason: str) -> None:
        """Worker side: publish why it could not be saved."""
        self._state["unsaved"] = reason.encode()[:MESSAGE_BYTES]

    def tell_remade(self, step: int | None) -> None:
        """Publish how far twins have caught up, None when they have. The server's side says when one is to join."""
        self._state["remade"] = NEVER if step is None else step


class SharedBytes:
    """Zeroed memory on its way to another process: create, `map`, `send`, `close`; `receive` on the other side."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.name = None
        self._descriptor = None
        if os.name == "nt":
            self.name = f"moeviz-{secrets.token_hex(16)}"  # Windows forgets a named mapping with its last user
        elif hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("moeviz")
        else:
            with tempfile.TemporaryFile() as file:
                self._descriptor = os.dup(file.fileno())
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, size)

    def map(self) -> mmap.mmap:
        """The memory; it lives until the last array over it is gone."""
        return _map(self._descriptor, self.size, self.name)

    def send(self, connection: Connection) -> None:
        """Hand the memory over, right after the message that announces it."""
        if self._descriptor is not None:
            with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as channel:
                socket.send_fds(channel, [b"M"], [self._descriptor])

    def close(self) -> None:
        """Give up the descriptor; mappings stay."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def receive(connection: Connection, size: int, name: str | None) -> mmap.mmap:
    """The memory that the other process sends with `SharedBytes.send`.

    Raises:
        EOFError: the other process is gone.
    """
    if name is not None:
        return _map(None, size, name)
    with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not descriptors:
        raise EOFError("the process that serves the pages is gone")
    try:
        return _map(descriptors[0], size, None)
    finally:
        os.close(descriptors[0])


def block_size(num_layers: int, num_experts: int) -> int:
    """Bytes of a block: header and lanes. Those that are not used are not taken from the machine."""
    return STATE.itemsize + LANES * lane_size(num_layers, num_experts)


@lru_cache(maxsize=64)
def lane_size(num_layers: int, num_experts: int) -> int:
    """Bytes of a lane, a multiple of the eight that its numbers are aligned to."""
    rows = ring_capacity(num_layers, num_experts)
    size = LANE.itemsize + TRUTH.itemsize + History.bytes_needed(num_layers, num_experts, rows)
    return -(-size // 8) * 8


def _checksum(serial: int, text: bytes) -> int:
    return zlib.crc32(text, serial & 0xFFFFFFFF)


def _map(descriptor: int | None, size: int, name: str | None) -> mmap.mmap:
    return mmap.mmap(-1, size, tagname=name) if descriptor is None else mmap.mmap(descriptor, size)
