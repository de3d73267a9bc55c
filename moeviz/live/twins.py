"""How do several twins travel to the browser in one answer?

An answer is a sequence of parts, each four bytes of length (little-endian) and one message of `wire.encode`. The first
part has no rows and says how the run is and which twins there are; then comes one part for each twin, in that order,
with the rows that the browser lacks.

What is said about the twins (names, differences, where they parted) changes rarely. It travels with its checksum,
`told`, and not at all to a browser that names this checksum.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from moeviz.config import Knobs, Recipe
from moeviz.live import wire
from moeviz.snapshot import record_dtype

# Of all twins together. Encoding and deflating 1600 rows of 64 experts takes about 10 ms of a server's core.
MOST_ROWS = 1600


class Twin(Protocol):
    """What is needed of one of the runs that train together."""

    id: int  # never used twice in a run
    name: str  # "A" for the base, then "B", "C", "D"
    parent: int | None  # the twin it was taken from; None for the base
    since: int  # the step at which it parted from its parent
    changes: Mapping[str, Any]  # knobs that differ from the base's
    differences: Sequence[str]  # the same for people: "u 0.003 → 0.03"
    diverged: str  # a sentence if its training stopped being numbers, else empty
    parted: tuple[int, int] | None  # first step, and first token of its batch, that it routed otherwise than the base
    knobs: Knobs
    version: int  # how often its knobs changed

    def labels_since(self, version: int) -> list[tuple[int, str]]: ...

    def records_since(self, epoch: int, step: int, limit: int) -> tuple[int, np.ndarray]: ...


class RunOfTwins(Protocol):
    """What is needed of a run."""

    recipe: Recipe
    version: int
    twins: Sequence[Twin]  # the base first
    catching_up: tuple[int, int] | None  # while steps are made again for a new twin: the newest of them, and the last

    def state(self) -> Any: ...  # moeviz.host.RunState


@dataclass(frozen=True, slots=True)
class KnownTwin:
    """What the browser has of a twin; -1 is nothing."""

    after: int = -1  # its newest step
    version: int = -1  # of its settings


@dataclass(frozen=True, slots=True)
class KnownTwins:
    """What the browser has of a run with twins; -1 is nothing."""

    epoch: int = -1
    told: int = -1  # checksum of what it was told about the twins
    twins: Mapping[int, KnownTwin] = field(default_factory=dict)  # by id


def encode_twins(run: RunOfTwins, known: KnownTwins) -> bytes:
    """The answer for a browser that has what is `known`."""
    twins, state = list(run.twins), run.state()
    fresh = known.epoch != state.epoch
    limit = MOST_ROWS // max(len(twins), 1)
    parts = [_overview(run, state, twins, known)]
    for twin in twins:
        has = KnownTwin() if fresh else known.twins.get(twin.id, KnownTwin())
        parts.append(_part(twin, state.epoch, has, limit))
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def decode_twins(answer: bytes) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """The inverse of `encode_twins`, as the browser does it: header and columns of each part."""
    parts, place = [], 0
    while place < len(answer):
        end = place + 4 + int.from_bytes(answer[place : place + 4], "little")
        parts.append(wire.decode(answer[place + 4 : end]))
        place = end
    return parts


def _overview(run: RunOfTwins, state: Any, twins: list[Twin], known: KnownTwins) -> bytes:
    header = {
        "epoch": state.epoch,
        "version": run.version,
        "status": state.status,
        "message": state.message,
        "notice": state.notice,
        "playing": state.playing,
        "step": state.step,
        "catching_up": None,
    }
    if run.catching_up is not None:
        header["catching_up"] = dict(zip(("step", "to"), run.catching_up, strict=True))
    if known.epoch != state.epoch:
        header["recipe"] = asdict(run.recipe)
    said = [_describe(twin) for twin in twins]
    header["told"] = zlib.crc32(json.dumps(said).encode())
    if header["told"] != known.told or known.epoch != state.epoch:
        header["twins"] = said
    return wire.encode(np.empty(0, record_dtype(run.recipe.num_layers, run.recipe.num_experts)), header)


def _describe(twin: Twin) -> dict[str, Any]:
    parted = None if twin.parted is None else dict(zip(("step", "token"), twin.parted, strict=True))
    return {
        "id": twin.id,
        "name": twin.name,
        "parent": twin.parent,
        "since": twin.since,
        "changes": dict(twin.changes),
        "differences": list(twin.differences),
        "diverged": twin.diverged,
        "parted": parted,
    }


def _part(twin: Twin, epoch: int, has: KnownTwin, limit: int) -> bytes:
    # The version is read before the rows it numbers: a change in between is then sent twice rather than never.
    version = twin.version
    header: dict[str, Any] = {"twin": twin.id, "version": version, "marks": twin.labels_since(has.version)}
    if version != has.version:
        header["knobs"] = asdict(twin.knobs)
    now, rows = twin.records_since(epoch, has.after, limit)
    if now != epoch:  # the run began again meanwhile: the next answer tells of that, and has its rows
        rows = rows[:0]
    return wire.encode(rows, header)
