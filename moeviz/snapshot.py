"""What does a training step show, and how is the past kept?

A `Snapshot` is everything the screen may know about one step: plain NumPy, frozen, copied at the border. A `History`
keeps the last steps in one flat buffer, which may be private memory (command line, notebook) or memory shared between
the process that trains and the process that serves the page.

Shapes: L layers, E experts per layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


HEADER = np.dtype([("epoch", "<i8"), ("count", "<i8")])


class History:
    """The last steps of a run in one flat buffer, written by one process and read by any.

    Readers get up to `capacity - 1` rows: the oldest may be half overwritten by the next.

    Rows are numbered from 0 and row n is step n. `epoch` counts how often the run began again, so that a reader never
    mixes two beginnings. The writer publishes a row by raising `count` after the row is complete; a reader checks
    `epoch` and `count` again after copying and retries if the rows it copied were overwritten meanwhile.
    """

    def __init__(self, num_layers: int, num_experts: int, capacity: int, buffer: memoryview | None = None) -> None:
        self.dtype = record_dtype(num_layers, num_experts)
        self.capacity = capacity
        if buffer is None:
            buffer = memoryview(bytearray(self.bytes_needed(num_layers, num_experts, capacity)))
        self._header = np.frombuffer(buffer, HEADER, count=1)
        self._rows = np.frombuffer(buffer, self.dtype, count=capacity, offset=HEADER.itemsize)

    @staticmethod
    def bytes_needed(num_layers: int, num_experts: int, capacity: int) -> int:
        """Size of the buffer in bytes."""
        return HEADER.itemsize + capacity * record_dtype(num_layers, num_experts).itemsize

    @property
    def epoch(self) -> int:
        """How often this run began again."""
        return int(self._header["epoch"][0])

    @property
    def count(self) -> int:
        """Rows written since the last beginning; the newest step is `count - 1`."""
        return int(self._header["count"][0])

    @property
    def last_step(self) -> int:
        return self.count - 1

    def restore(self, rows) -> None:
        for row in rows:
            self._rows[self.count % self.capacity] = row
            self._header["count"] += 1

    def clear(self) -> None:
        """Begin again: forget every row."""
        self._header["count"] = 0
        self._header["epoch"] += 1

    def append(self, snapshot: Snapshot, version: int = 0) -> None:
        """Write one step and publish it."""
        count = self.count
        self._rows[count % self.capacity] = _record(snapshot, version)
        self._header["count"] = count + 1

    def since(self, step: int, limit: int = 1 << 30) -> tuple[int, np.ndarray]:
        """Copies of the rows after `step`, oldest first, and the epoch they belong to.

        More than `limit` rows are thinned to every n-th, about `limit` in number. Never thinned away: the newest row,
        rows with a held-out loss, and the first row under changed settings.
        """
        while True:
            epoch, count = self.epoch, self.count
            # The oldest row may be half overwritten: the writer fills it before it raises the count.
            first = max(step + 1, count - self.capacity + 1, 0)
            wanted = np.arange(first, count)
            if wanted.size > limit:
                wanted = wanted[self._telling(wanted, math.ceil(wanted.size / max(limit, 1)))]
            rows = self._rows[wanted % self.capacity]
            if self.epoch == epoch and (wanted.size == 0 or first > self.count - self.capacity):
                return epoch, rows

    def _telling(self, wanted: np.ndarray, stride: int) -> np.ndarray:
        """Which of these rows to keep, as a mask."""
        place = wanted % self.capacity
        keep = wanted % stride == 0
        keep |= np.isfinite(self._rows["eval_loss"][place])  # a column at a time: whole rows are many times longer
        keep[1:] |= np.diff(self._rows["version"][place].astype(np.int64)) != 0
        keep[-1] = True
        return keep
