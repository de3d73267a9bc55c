"""What do the charts need from a run, or from one with twins? This much, from the real engine and without a clock.

Every number is the engine's. A run trains when a test says so, and to the step it says; `playing` is what the run says
of itself. What a worker process adds (checkpoints, taking up again) is left out: a new twin is made by training all of
them again from step 0, and nothing is shown of that twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from moeviz.config import Knobs, Recipe, check, describe_change
from moeviz.host import RunState
from moeviz.snapshot import History, Snapshot
from moeviz.toy import Group, TrainingDiverged

NAMES = "ABCD"
ROWS = 1000


@dataclass
class StandInTwin:
    """One of the runs that train together."""

    id: int
    name: str
    knobs: Knobs
    history: History
    parent: int | None = 0
    since: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    diverged: str = ""
    parted: tuple[int, int] | None = None
    version: int = 0
    labels: list[tuple[int, str]] = field(default_factory=list)
    epoch: int = 1

    def labels_since(self, version: int) -> list[tuple[int, str]]:
        return [(number, label) for number, label in self.labels if number > version]

    def records_since(self, epoch: int, step: int, limit: int) -> tuple[int, np.ndarray]:
        return self.epoch, self.history.since(step if epoch == self.epoch else -1, limit)[1]

    def record(self, result: Snapshot | TrainingDiverged) -> None:
        if self.diverged:
            return
        if isinstance(result, TrainingDiverged):
            self.diverged = str(result)
            return
        self.history.append(result, self.version)
        if self.parted is None and result.apart.routed_differently > 0:
            self.parted = result.step, result.apart.first_token


class StandInRun:
    """A run, whose twins train with it."""

    def __init__(self, recipe: Recipe, knobs: Knobs, twins: Sequence[dict[str, Any]] = ()) -> None:
        self.token = secrets.token_urlsafe(16)
        self.owner: str | None = None
        self.recipe, self.knobs = recipe, knobs
        self.epoch, self.version, self.ids = 1, 0, 0
        self.status, self.message, self.notice, self.playing = "ready", "", "", False
        self.catching_up = None
        self.checks = 0
        self._begin(self._family([{}, *twins]))

    # --- what the routes ask ---

    def claim(self, visitor: str) -> bool:
        """Nobody's until a test says whose, so that several browsers may look at it."""
        return self.owner in (None, visitor)

    def touch(self) -> None:
        """Nobody's absence is noticed here."""

    def state(self) -> RunState:
        return RunState(self.status, self.message, self.playing, self.step, self.epoch, None, notice=self.notice)

    def labels_since(self, version: int) -> list[tuple[int, str]]:
        return self.twins[0].labels_since(version)

    def records_since(self, epoch: int, step: int, limit: int = ROWS) -> tuple[int, np.ndarray]:
        return self.twins[0].records_since(epoch, step, limit)

    def truth(self) -> tuple[int, list[dict[str, Any]]]:
        return self.checks, [asdict(identity) for identity in self.identities or ()]

    # --- what a visitor does, and what happens meanwhile ---

    @property
    def step(self) -> int:
        return len(self.schedule)

    def train_to(self, step: int) -> None:
        while self.step < step:
            knobs = {twin.id: twin.knobs for twin in self.twins}
            self._record(self.group.step(knobs))
            self.schedule.append(knobs)

    def set_knobs(self, knobs: Knobs) -> None:
        check(self.recipe, knobs)
        label = "; ".join(describe_change(self.knobs, knobs))
        self.knobs = knobs
        self.version += 1
        for twin in self.twins:
            twin.knobs, twin.version = replace(knobs, **twin.changes), twin.version + 1
            twin.labels.append((twin.version, label))

    def reset(self) -> None:
        kept = [twin for twin in self.twins if twin.since == 0]
        self.epoch += 1
        twins = self._family([twin.changes for twin in kept])
        for twin, before in zip(twins, kept, strict=True):
            twin.id, twin.name = before.id, before.name
        self._begin(twins)

    def add_twin(self, changes: dict[str, Any], parent: int = 0, since: int = 0) -> None:
        twin = self._twin(self.twins, changes, parent, since)
        self.schedule = [
            knobs | {twin.id: knobs[parent] if number <= since else twin.knobs}
            for number, knobs in enumerate(self.schedule, start=1)
        ]
        self._again([*self.twins, twin], fresh=twin)

    def remove_twin(self, number: int) -> None:
        self.schedule = [{who: knobs for who, knobs in step.items() if who != number} for step in self.schedule]
        self._again([twin for twin in self.twins if twin.id != number])

    def _begin(self, twins: list[StandInTwin]) -> None:
        self.schedule: list[dict[int, Knobs]] = []  # of every step so far
        self.identities = None
        self.twins = twins
        self.group = Group(self.recipe, {twin.id: twin.knobs for twin in twins})
        self._record(self.group.observe())

    def _family(self, changes_R: Sequence[dict[str, Any]]) -> list[StandInTwin]:
        twins: list[StandInTwin] = []
        for changes in changes_R:
            twins.append(self._twin(twins, changes, 0, 0))
        return twins

    def _twin(self, others: Sequence[StandInTwin], changes: dict[str, Any], parent: int, since: int) -> StandInTwin:
        knobs, number = replace(self.knobs, **changes), self.ids
        check(self.recipe, knobs)
        self.ids += 1
        name = next(name for name in NAMES if name not in [twin.name for twin in others])
        history = History(self.recipe.num_layers, self.recipe.num_experts, ROWS)
        differences = describe_change(self.knobs, knobs)
        twin = StandInTwin(number, name, knobs, history, parent if others else None, since, changes, differences)
        twin.epoch = self.epoch
        return twin

    def _record(self, results: Mapping[int, Snapshot | TrainingDiverged]) -> None:
        for twin in self.twins:
            twin.record(results[twin.id])
        identities = self.group.truth(self.twins[0].id)
        if identities is not self.identities:
            self.identities, self.checks = identities, self.checks + 1

    def _again(self, twins: list[StandInTwin], fresh: StandInTwin | None = None) -> None:
        """All steps once more; only a twin that has none yet records them."""
        self.group = Group(self.recipe, self.schedule[0] if self.schedule else {twin.id: twin.knobs for twin in twins})
        for step in range(len(self.schedule) + 1):
            results = self.group.step(self.schedule[step - 1]) if step else self.group.observe()
            if fresh is not None and step >= fresh.since:
                fresh.record(results[fresh.id])
        self.twins = twins
