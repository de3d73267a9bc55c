"""What does the page that compares need from a run with twins? This much, with real training in a thread.

The twins are `moeviz.Twins`, every number is theirs. What a worker process adds (checkpoints, taking up again) is left
out: a new twin is made by training all of them again from step 0, and nothing is shown of that twice.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moeviz.config import Knobs, Recipe, check, describe_change
from moeviz.engine import TrainingDiverged, Twins
from moeviz.host import RunState
from moeviz.snapshot import History, Snapshot

NAMES = "ABCD"
ROWS = 10_000


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
        if isinstance(result, TrainingDiverged):
            self.diverged = str(result)
            return
        self.history.append(result, self.version)
        if self.parted is None and result.apart.routed_differently > 0:
            self.parted = result.step, result.apart.first_token


class StandInRun:
    """A run whose twins train in a thread."""

    def __init__(self, recipe: Recipe, knobs: Knobs, speed: float = 60.0) -> None:
        self.token, self.owner = secrets.token_urlsafe(16), None
        self.recipe, self.knobs, self.speed = recipe, knobs, speed
        self.epoch, self.version, self.ids = 1, 0, 0
        self.playing, self.target, self.catching_up, self.closed = False, None, None, False
        self.schedule: list[list[Knobs]] = []  # of every step so far
        self.lock = threading.RLock()
        self.twins: list[StandInTwin] = []
        self._begin([{}])
        threading.Thread(target=self._train, daemon=True).start()

    # --- what the routes ask ---

    def claim(self, visitor: str) -> bool:
        self.owner = self.owner or visitor
        return self.owner == visitor

    def touch(self) -> None:
        """Nobody's absence is noticed here."""

    def state(self) -> RunState:
        return RunState("ready", "", self.playing, self.step, self.epoch, self.target)

    def set_knobs(self, knobs: Knobs, version: int | None = None) -> bool:
        with self.lock:
            if version not in (None, self.version):
                return False
            check(self.recipe, knobs)
            if knobs != self.knobs:
                self.version += 1
                label = "; ".join(describe_change(self.knobs, knobs))
                self.knobs = knobs
                for twin in self.twins:
                    twin.knobs, twin.version = changed(knobs, twin.changes), twin.version + 1
                    twin.labels.append((twin.version, label))
                    twin.differences = describe_change(knobs, twin.knobs)
        return True

    # --- what a page does ---

    @property
    def step(self) -> int:
        return len(self.schedule)

    def play(self, until: int | None = None) -> None:
        with self.lock:
            self.playing, self.target = True, until

    def pause(self) -> None:
        with self.lock:
            self.playing = False

    def reset(self) -> None:
        with self.lock:
            self.epoch += 1
            self.playing = False
            kept = [twin for twin in self.twins if twin.since == 0]
            self._begin([twin.changes for twin in kept])
            for twin, before in zip(self.twins, kept, strict=True):
                twin.id, twin.name = before.id, before.name

    def add_twin(self, changes: dict[str, Any], parent: int = 0, since: int = 0) -> None:
        with self.lock:
            knobs = changed(self.knobs, changes)
            check(self.recipe, knobs)
            name = next(name for name in NAMES if name not in [twin.name for twin in self.twins])
            self._add(name, knobs, changes, parent, since)
            source = [twin.id for twin in self.twins].index(parent)
            for number, knobs_R in enumerate(self.schedule, start=1):
                knobs_R.append(knobs_R[source] if number <= since else knobs)
            self._again()

    def remove_twin(self, number: int) -> None:
        with self.lock:
            place = [twin.id for twin in self.twins].index(number)
            del self.twins[place]
            for knobs_R in self.schedule:
                del knobs_R[place]
            self._again(quiet=True)

    def _begin(self, changes_R: list[dict[str, Any]]) -> None:
        self.twins, self.schedule = [], []
        for name, changes in zip(NAMES, changes_R, strict=False):
            self._add(name, changed(self.knobs, changes), changes, 0, 0)
        self.engine = Twins(self.recipe, [twin.knobs for twin in self.twins])
        for twin, result in zip(self.twins, self.engine.observe(), strict=True):
            twin.record(result)

    def _add(self, name: str, knobs: Knobs, changes: dict[str, Any], parent: int, since: int) -> None:
        history = History(self.recipe.num_layers, self.recipe.num_experts, ROWS)
        twin = StandInTwin(self.ids, name, knobs, history, parent if self.twins else None, since, changes)
        twin.epoch, twin.differences = self.epoch, describe_change(self.knobs, knobs)
        self.ids += 1
        self.twins.append(twin)

    def _again(self, quiet: bool = False) -> None:
        """All steps once more; only a twin that has none yet records them."""
        fresh = [] if quiet else self.twins[-1:]
        self.engine = Twins(self.recipe, self.schedule[0] if self.schedule else [twin.knobs for twin in self.twins])
        for step in range(len(self.schedule) + 1):
            results = self.engine.step(self.schedule[step - 1]) if step else self.engine.observe()
            self.catching_up = (step, len(self.schedule))
            for twin in fresh:
                if step >= twin.since:
                    twin.record(results[self.twins.index(twin)])
        self.catching_up = None

    def _train(self) -> None:
        due = time.monotonic()
        while not self.closed:
            due = max(due + 1 / self.speed, time.monotonic())
            with self.lock:
                if self.playing:
                    self._step()
            time.sleep(max(due - time.monotonic(), 0.001))

    def _step(self) -> None:
        knobs_R = [twin.knobs for twin in self.twins]
        results = self.engine.step(knobs_R)
        self.schedule.append(knobs_R)
        for twin, result in zip(self.twins, results, strict=True):
            if not twin.diverged:
                twin.record(result)
        if self.target is not None and self.step >= self.target:
            self.playing, self.target = False, None


def changed(knobs: Knobs, changes: dict[str, Any]) -> Knobs:
    """Knobs with changes, also with a learning rate past the range that people may choose: that diverges at once."""
    rate = changes.get("learning_rate", 0.0)
    if rate <= 1.0:
        return replace(knobs, **changes)
    mad = replace(knobs, **changes | {"learning_rate": 1.0})
    object.__setattr__(mad, "learning_rate", rate)
    return mad


class StandInHost:
    """The runs of one server."""

    def __init__(self) -> None:
        self.runs: dict[str, StandInRun] = {}

    def get(self, token: str) -> StandInRun | None:
        return self.runs.get(token)

    def is_near(self, token: str) -> bool:
        return True

    def create(self, recipe: Recipe, knobs: Knobs, speed: float) -> StandInRun:
        run = StandInRun(recipe, knobs, speed)
        self.runs[run.token] = run
        return run


HOST = StandInHost()
