"""What does a training step show, and how is the past kept?

A `Snapshot` is everything the screen may know about one step: plain NumPy, frozen, copied at the border. A `History`
keeps a run in one flat buffer of fixed size, which may be private memory (command line, notebook) or memory shared
between the process that trains and the process that serves the page.

Shapes: L layers, E experts per layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One step as the screen may see it. Step 0 is the untrained model; step n is measured while making update n."""

    step: int
    task_loss: float  # MSE (skills) or nats per byte (text) on the training batch
    added_loss: float  # balance loss as added to the task loss, alpha included
    mtp_loss: float  # loss on tokens further ahead, mean over depths, without lambda; NaN without such a prediction
    eval_loss: float  # held-out task loss, nothing dropped; NaN at steps without an evaluation
    load_LE: np.ndarray  # (token, expert) pairs before drops
    kept_load_LE: np.ndarray  # pairs that survive the capacity limit
    bias_LE: np.ndarray  # selection bias used in this step, float32
    max_vio_L: np.ndarray  # (max load - mean load) / mean load
    max_vio_global_L: np.ndarray  # the same of the load summed over the last GLOBAL_WINDOW steps
    straggler_L: np.ndarray  # max over devices of load / mean, on paper; NaN where D does not divide E
    specialisation_L: np.ndarray  # I(expert; domain) / H(domain) on held-out tokens; NaN without an evaluation
    fan_out_L: np.ndarray  # mean number of groups that a token touches
    dead_experts_L: np.ndarray  # experts with under 1 % of the mean load over the last DEAD_WINDOW steps
    dropped_fraction_L: np.ndarray  # dropped pairs / (T K)
    interference: Interference
    fair: Fair
    steps_per_second: float
    apart: Apart = field(default_factory=lambda: ALONE)


@dataclass(frozen=True, slots=True)
class Apart:
    """How a twin routed a batch beside the first twin. A token counts if its set of experts differs in any layer."""

    routed_differently: float = math.nan  # share of the batch's tokens; NaN alone and for the first twin
    first_token: int = -1  # place in the batch of the first such token


ALONE = Apart()


@dataclass(frozen=True, slots=True)
class Interference:
    """What the added balance losses do to the task's gradient in one step (SPEC 5): all NaN at steps without a probe.

    Router: the centroids of all layers. Trunk: every other parameter from which the balance losses can be changed.
    Ratios are 0 when nothing is added; the trunk's figures are NaN where there is none (skills with one layer).
    """

    router_ratio: float = math.nan  # |g_added| / |g_task|
    router_cosine: float = math.nan
    trunk_ratio: float = math.nan
    trunk_cosine: float = math.nan


NOT_PROBED = Interference()


@dataclass(frozen=True, slots=True)
class Fair:
    """What a perfectly fair random router would show at this T, K and E, from Monte Carlo draws (SPEC 5, floor)."""

    max_vio: float  # mean over draws of MaxVio
    max_vio_p95: float  # 95th percentile of MaxVio
    min_load_p05: float  # 5th percentile of the smallest load, relative to the mean load


EVAL_EVERY = 25  # steps between two evaluations on held-out tokens
# Columns of a row that tell of the clock, of who changes settings and of the twins beside a run, not of the run itself:
# two rows of one training may differ in these and in nothing else.
CIRCUMSTANCES = ("version", "steps_per_second", "routed_differently")


def record_dtype(num_layers: int, num_experts: int) -> np.dtype:
    """The fixed-size row a `History` keeps per step. Loads fit 16 bits: a token counts once per expert, T <= 8192."""
    L, LE = (num_layers,), (num_layers, num_experts)
    return np.dtype(
        [
            ("step", "<u4"),
            ("version", "<u4"),  # which settings were in force; counted by whoever changes them
            ("task_loss", "<f4"),
            ("added_loss", "<f4"),
            ("mtp_loss", "<f4"),
            ("eval_loss", "<f4"),
            ("interference_router_ratio", "<f4"),
            ("interference_router_cosine", "<f4"),
            ("interference_trunk_ratio", "<f4"),
            ("interference_trunk_cosine", "<f4"),
            ("fair_max_vio", "<f4"),
            ("fair_max_vio_p95", "<f4"),
            ("fair_min_load_p05", "<f4"),
            ("steps_per_second", "<f4"),
            ("routed_differently", "<f4"),
            ("max_vio", "<f4", L),
            ("max_vio_global", "<f4", L),
            ("straggler", "<f4", L),
            ("specialisation", "<f4", L),
            ("fan_out", "<f4", L),
            ("dropped_fraction", "<f4", L),
            ("dead_experts", "<u2", L),
            ("bias", "<f4", LE),
            ("load", "<u2", LE),
            ("kept_load", "<u2", LE),
        ]
    )


def _record(snapshot: Snapshot, version: int) -> tuple:
    """The values of a row in the order of `record_dtype`: written all at once, they take a fourth of the time."""
    interference, fair = snapshot.interference, snapshot.fair
    return (
        snapshot.step,
        version,
        snapshot.task_loss,
        snapshot.added_loss,
        snapshot.mtp_loss,
        snapshot.eval_loss,
        interference.router_ratio,
        interference.router_cosine,
        interference.trunk_ratio,
        interference.trunk_cosine,
        fair.max_vio,
        fair.max_vio_p95,
        fair.min_load_p05,
        snapshot.steps_per_second,
        snapshot.apart.routed_differently,
        snapshot.max_vio_L,
        snapshot.max_vio_global_L,
        snapshot.straggler_L,
        snapshot.specialisation_L,
        snapshot.fan_out_L,
        snapshot.dropped_fraction_L,
        snapshot.dead_experts_L,
        snapshot.bias_LE,
        snapshot.load_LE,
        snapshot.kept_load_LE,
    )


LEVELS, BUCKET = 8, 64
KEPT = 7  # rows that climb from a bucket at most; the first row of a run climbs in addition
SPARE = KEPT + 2  # places of a ring that are out of sight: for what is published at once, and the row before the oldest
MOST_ABOVE = 1_500  # rows of a level above the first, also where the first is to keep millions

# Eight bytes and aligned, so that a reader sees either the old or the new value of each. `count`, `begin` and `taken`
# are those of level 0; the same three of each further level follow.
HEADER = np.dtype(
    [
        ("epoch", "i8"),
        ("cuts", "i8"),
        ("count", "i8"),
        ("begin", "i8"),
        ("taken", "i8"),
        ("above", "i8", (LEVELS - 1, 3)),
    ]
)
EPOCH, CUTS, COUNT, BEGIN, TAKEN = range(5)  # their places in the header; those of level n are 3 n places further on


class History:
    """A whole run in one flat buffer of fixed size, written by one process and read by any.

    Level 0 has the newest `capacity` rows (BUCKET at least), every one. Each level above has rows from the one below:
    before a level forgets rows, its BUCKET oldest climb, which means those few of them that `telling` picks. No row is
    an average, each was a real step. A row stands for at least BUCKET / KEPT = 9 rows of the level below, so that 8
    levels have room for 10^8 steps whatever happens in them. Only after that are the oldest steps forgotten.

    `epoch` counts how often the run began again, so that a reader never mixes two beginnings. Only what is said to be
    the writer's side changes anything.
    """

    # How does a reader see no torn row, no gap and no row twice, although nobody waits for anybody?
    #
    # Rows of a level are numbered; row n is at place n % size of its ring. The writer completes rows, lets others climb
    # if need be, and only then raises `count`. Rows before `count - shown` are out of sight. A ring has more places
    # than rows in sight, by as many as are published at once: so what is being written is written over rows out of
    # sight. A reader copies rows, looks at `count` again, and drops what is out of sight by now. The rest is whole.
    #
    # Rows climb before the `count` is published that puts them out of sight. A reader goes from level 0 upwards. So
    # what it lacks at the old end of a level had climbed by the time when it dropped it, and is in the level above,
    # which it reads later. There the same holds, up to a level that never forgot. However fast the writer is, it reads
    # again only where it slept while all of a level was written over.
    #
    # Part of a bucket that climbed is still in sight below. From each level a reader takes only rows before the oldest
    # that it has from below, so that none comes twice. An extreme of the bucket is then in the newer part, all of which
    # it has, or in the older part, and then it had been picked.
    #
    # `cut`, `clear` and `restore` take counts back, and then none of this holds. They raise `cuts` or `epoch` at their
    # end, and a reader that saw it change begins again. One that is done before the end gets whole rows in order, since
    # nothing was written yet, but perhaps not all of them; it need not wait for a writer that may have died there.

    bucket = BUCKET

    def __init__(self, num_layers: int, num_experts: int, capacity: int, buffer: memoryview | None = None) -> None:
        self.dtype = record_dtype(num_layers, num_experts)
        self.capacity = capacity
        if buffer is None:
            buffer = memoryview(bytearray(self.bytes_needed(num_layers, num_experts, capacity)))
        self._shown = self._rows_in_sight(capacity)
        ends = np.cumsum([shown + SPARE for shown in self._shown])
        self._header = np.frombuffer(buffer, HEADER, count=1)
        self._state = memoryview(buffer)[: HEADER.itemsize].cast("q")  # the same, faster to reach than through NumPy
        self._rows = np.frombuffer(buffer, self.dtype, count=int(ends[-1]), offset=HEADER.itemsize)
        self._rings = np.split(self._rows, ends[:-1])
        # Rows as lumps of bytes: NumPy moves those as a whole, and rows with columns column by column.
        self._blobs = [ring.view(f"V{self.dtype.itemsize}") for ring in self._rings]

    @classmethod
    def bytes_needed(cls, num_layers: int, num_experts: int, capacity: int) -> int:
        """Size of the buffer in bytes."""
        rows = sum(shown + SPARE for shown in cls._rows_in_sight(capacity))
        return HEADER.itemsize + rows * record_dtype(num_layers, num_experts).itemsize

    @classmethod
    def _rows_in_sight(cls, capacity: int) -> list[int]:
        """Of each level. A bucket must fit into each."""
        above = max(min(capacity // (LEVELS - 1), MOST_ABOVE), cls.bucket)
        return [max(capacity, cls.bucket)] + [above] * (LEVELS - 1)

    @property
    def epoch(self) -> int:
        """How often this run began again."""
        return self._state[EPOCH]

    @property
    def count(self) -> int:
        """Rows written since the last beginning, restored ones included. A cut takes it back."""
        return self._state[COUNT]

    @property
    def last_step(self) -> int:
        """The newest recorded step, -1 if there is none."""
        newest = (self._newest(level, "step") for level in range(LEVELS))
        return next((step for step in newest if step is not None), -1)

    @property
    def whole_since(self) -> int:
        """From the step after this one on, every step is still there; 0 while none has been thinned."""
        while True:
            climbed, (first, count) = self._state[3 + COUNT], self._in_sight(0)
            if climbed == self._state[3 + BEGIN] or first >= count:
                return 0
            step = int(self._rings[0]["step"][first % len(self._rings[0])])
            if self._in_sight(0)[0] < count:
                return step - 1

    def clear(self) -> None:
        """Begin again: forget every row. Writer's side."""
        state = self._state
        for place in range(COUNT, len(state)):  # each `count` before its `begin`, so that nothing comes into sight
            state[place] = 0
        state[EPOCH] += 1

    def append(self, snapshot: Snapshot, version: int = 0) -> None:
        """Write one step, later than all before, and publish it. Writer's side."""
        count, ring = self._state[COUNT], self._rings[0]
        ring[count % len(ring)] = _record(snapshot, version)
        self._publish(0, count + 1)

    def since(self, step: int, limit: int = 1 << 30) -> tuple[int, np.ndarray]:
        """Copies of the rows after `step`, in the order of their steps, and the epoch they belong to.

        More than `limit` rows are `thinned` to that. Where steps are missing between two rows, rows were passed over
        that tell less than those two.
        """
        state = self._state
        while True:
            epoch, cuts = state[EPOCH], state[CUTS]
            rows = self._after(step)
            if (epoch, cuts) == (state[EPOCH], state[CUTS]):
                return epoch, thinned(rows, limit)

    def restore(self, rows: np.ndarray) -> None:
        """Fill an empty history with what `since(-1)` gave, so that it gives the same again. Writer's side.

        More rows than fit, from a larger history, are thinned as `since` does it.

        Raises:
            ValueError: rows of another shape or not in the order of their steps, or there is a history already.
        """
        if rows.dtype != self.dtype or rows.ndim != 1:
            raise ValueError(
                "These rows have other columns, layers or experts. Restore the history of the same recipe."
            )
        if (np.diff(rows["step"].astype(np.int64)) <= 0).any():
            raise ValueError("The steps of these rows do not ascend. Restore what since(-1) gave, as it was.")
        if self.last_step >= 0:
            raise ValueError(f"This history is at step {self.last_step} already. Restore into an empty one.")
        rows = thinned(rows, sum(self._shown))
        parts, begin = [], len(rows)
        for level, shown in enumerate(self._shown):
            begin, end = max(begin - shown, 0), begin
            parts.append((level, begin, end))
            self._write(level, begin, rows[begin:end])
        for part in reversed(parts):  # from the oldest, so that a reader who comes now has no gap
            self._set(*part)
        self._state[CUTS] += 1

    def cut(self, step: int) -> None:
        """Forget all rows after `step`. Writer's side."""
        for level in range(LEVELS):
            first, count = self._in_sight(level)
            steps = self._copy(level, first, count)["step"].astype(np.int64)
            kept = int(np.searchsorted(steps, step, "right"))
            self._set(level, first, first + kept)
            if kept:
                # What climbed from rows still in sight is forgotten too, and they climb again when their time comes: of
                # a bucket that lost its end other rows may tell most.
                step = int(steps[0]) - 1
        self._state[CUTS] += 1

    def _set(self, level: int, begin: int, count: int) -> None:
        """Publish other bounds of a level; none of these rows has climbed."""
        self._state[3 * level + BEGIN] = begin
        self._state[3 * level + TAKEN] = begin
        self._state[3 * level + COUNT] = count  # after `begin`, see `_in_sight`

    def _publish(self, level: int, count: int) -> None:
        """The rows of a level before `count` are complete: let those climb that go out of sight, and show them."""
        if level + 1 < LEVELS:
            while count - self._state[3 * level + TAKEN] > self._shown[level]:
                self._climb(level)
        self._state[3 * level + COUNT] = count

    def _climb(self, level: int) -> None:
        """The oldest bucket of a level that has not climbed yet does."""
        taken = self._state[3 * level + TAKEN]
        rows = self._copy(level, taken, taken + self.bucket)
        picked = rows[telling(rows, np.zeros(1, int), self._version_before(level, taken))]
        count = self._state[3 * (level + 1) + COUNT]
        self._write(level + 1, count, picked)
        self._publish(level + 1, count + len(picked))
        self._state[3 * level + TAKEN] = taken + self.bucket

    def _version_before(self, level: int, row: int) -> int | None:
        """The settings of the row before this one, None if there is none. Where a level begins, it is further up."""
        if row > self._state[3 * level + BEGIN]:
            return int(self._rings[level]["version"][(row - 1) % len(self._rings[level])])
        above = (self._newest(higher, "version") for higher in range(level + 1, LEVELS))
        return next((version for version in above if version is not None), None)

    def _in_sight(self, level: int) -> tuple[int, int]:
        """The first row of a level that a reader may have, and the one after the last."""
        count = self._state[3 * level + COUNT]  # before `begin`, since a cut changes that first
        return max(count - self._shown[level], self._state[3 * level + BEGIN]), count

    def _newest(self, level: int, name: str) -> int | None:
        """A whole number from the newest row of a level, None if it has no row."""
        ring = self._rings[level]
        while True:
            first, count = self._in_sight(level)
            if first >= count:
                return None
            value = int(ring[name][(count - 1) % len(ring)])
            if self._in_sight(level)[0] < count:
                return value

    def _after(self, step: int) -> np.ndarray:
        """Copies of all rows after a step, from level 0 upwards."""
        parts, before = [], 1 << 32
        for level in range(LEVELS):
            rows = self._copy_whole(level, step)
            if rows.size:
                first, end = np.searchsorted(rows["step"].astype(np.int64), [step + 1, before])
                parts.append(rows[first:end])
                if first:
                    break  # here is a row that is not wanted any more: no level above has one that is
                before = min(before, int(rows["step"][0]))  # the writer may have been here since
        return np.concatenate(parts[::-1]) if parts else np.empty(0, self.dtype)

    def _copy_whole(self, level: int, step: int) -> np.ndarray:
        """Copies of the rows of a level after a step, of some up to it, and of none that was written over meanwhile."""
        ring = self._rings[level]
        while True:
            first, count = self._in_sight(level)
            if first >= count:
                return np.empty(0, self.dtype)
            last = int(ring["step"][(count - 1) % len(ring)])
            # Steps ascend: no more than `last - step` rows are after it. And one more, to see whether more are wanted.
            first = max(first, count - 1 - max(last - step, 0))
            rows = self._copy(level, first, count)
            oldest, newest = self._in_sight(level)
            if oldest < count:  # otherwise all were written over, the one that `last` is from too
                return rows[max(oldest - first, 0) : max(newest - first, 0)]

    def _copy(self, level: int, first: int, count: int) -> np.ndarray:
        ring = self._blobs[level]
        return ring.take(np.arange(first, count) % len(ring)).view(self.dtype)

    def _write(self, level: int, first: int, rows: np.ndarray) -> None:
        ring = self._blobs[level]
        ring[np.arange(first, first + len(rows)) % len(ring)] = rows.view(ring.dtype)


def thinned(rows: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` of these rows, and at least the newest.

    The newest half of the limit comes whole. The time before is divided into as many buckets of the same number of
    steps as still fit, and of each come the rows that `telling` picks, and the first row of all.
    """
    if len(rows) <= limit:
        return rows
    older = len(rows) - max(limit // 2, 1)
    buckets = (limit - (len(rows) - older) - 1) // KEPT
    if buckets < 1:
        return rows[-max(limit, 1) :]
    steps = rows["step"][:older].astype(np.int64)
    bucket = (steps - steps[0]) * buckets // (steps[-1] - steps[0] + 1)
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    return rows[np.concatenate([telling(rows[:older], starts), np.arange(older, len(rows))])]


def telling(rows: np.ndarray, starts: np.ndarray, version_before: int | None = None) -> np.ndarray:
    """The places, in order, of the rows that tell most of each bucket. Buckets begin at the places `starts`.

    Those with the largest and the smallest MaxVio (of its worst layer) and task loss; the first under changed settings;
    one with a held-out loss and one with a probe of interference, where none of those has it: both are rare, and fall
    on different steps. Among equals the first. Numbers that are not finite are no extremes. At most KEPT of a bucket,
    and at least one. If no `version_before` says that a row comes before all, the first row of all in addition.
    """
    bucket = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))
    version = rows["version"]
    found = np.empty((5, len(rows)), bool)
    for row, values in enumerate((_largest(rows["max_vio"]), rows["task_loss"])):
        for sign in (1, -1):
            signed = np.where(np.isfinite(values), sign * values, -np.inf)
            found[2 * row + (sign < 0)] = signed == np.maximum.reduceat(signed, starts)[bucket]
    found[4, 0] = version_before is not None and version[0] != version_before
    np.not_equal(version[1:], version[:-1], out=found[4, 1:])
    keep = np.zeros(len(rows), bool)
    keep[_first_of_each(bucket, found)] = True
    measured = np.isfinite([rows["eval_loss"], rows["interference_router_ratio"]])
    keep[_first_of_each(bucket, measured & ~np.logical_or.reduceat(measured & keep, starts, axis=1)[:, bucket])] = True
    keep[0] |= version_before is None
    return np.flatnonzero(keep)


def _first_of_each(bucket_N: np.ndarray, found_KN: np.ndarray) -> np.ndarray:
    """Of each kind and bucket the first place where it was found, if anywhere."""
    kinds, places = np.nonzero(found_KN)
    both = kinds * len(bucket_N) + bucket_N[places]
    first = np.ones(len(both), bool)
    np.not_equal(both[1:], both[:-1], out=first[1:])
    return places[first]


def _largest(values_NL: np.ndarray) -> np.ndarray:
    """Of each row, among its finite values; -inf where there is none."""
    return np.where(np.isfinite(values_NL), values_NL, -np.inf).max(axis=1)
