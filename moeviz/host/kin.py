"""Which runs are trained together in one visitor's run, and what tells them apart?

They have one recipe, so the same first weights and the same batches. Twin 0 is the base. Every other one parted from
its parent after some step and has changes: single settings in which it differs from the base, whatever the base's are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from moeviz.config import (
    KNOB_FIELDS,
    Knobs,
    Recipe,
    SettingsError,
    balancing_fields,
    check,
    describe_change,
    settle,
)
from moeviz.host import worker

NEVER_PARTS = 1 << 62
MOST_VERSIONS = 1_000  # settings that are remembered: as many as a hand can change between two savings
NAMES = "ABCDEFGH"  # of twins, by their lanes


@dataclass(frozen=True, slots=True)
class Kin:
    """A twin as the server knows it. Replaced whole, never changed: readers take no lock."""

    number: int  # never used twice in a run
    lane: int
    parent: int | None
    since: int  # the last step that it shares with its parent
    changes: dict[str, Any]  # by name, "balancing" among them
    versions: dict[int, Knobs]  # settings by their number; the largest is in force
    labels: tuple[tuple[int, str], ...] = ()
    plan: tuple[tuple[int, int], ...] = ()  # (from step, version): for steps that others have already
    planned_to: int = -1
    lineage: tuple[tuple[int, int], ...] = field(default=())  # ancestors, each with the last step that it shares

    @property
    def version(self) -> int:
        """The number of the settings in force."""
        return max(self.versions)

    @property
    def knobs(self) -> Knobs:
        """The settings in force."""
        return self.versions[self.version]

    def turned(self, knobs: Knobs, version: int, label: str = "") -> Kin:
        """The same twin under other settings from now on."""
        versions = self.versions | {version: knobs}
        if len(versions) > MOST_VERSIONS:
            del versions[min(versions)]
        labels = (*self.labels[-MOST_VERSIONS:], (version, label)) if label else self.labels
        return replace(self, versions=versions, labels=labels)

    def again(self) -> Kin:
        """The same twin at step 0, and with nothing behind it."""
        parent = None if self.parent is None else 0
        return Kin(self.number, self.lane, parent, 0, self.changes, {self.version: self.knobs})

    def for_worker(self) -> worker.Twin:
        """What its worker is told."""
        return worker.Twin(
            number=self.number,
            lane=self.lane,
            knobs=self.knobs,
            version=self.version,
            versions=dict(self.versions),
            plan=self.plan,
            planned_to=self.planned_to,
            lineage=((self.number, NEVER_PARTS), *self.lineage),
        )


def changed(recipe: Recipe, knobs: Knobs, changes: Mapping[str, Any]) -> tuple[Knobs, list[str]]:
    """Knobs with some of them changed, moved to the nearest possible ones, and a sentence for whatever had to give.

    Raises:
        SettingsError: a value that its setting can never have.
        TypeError: a name that is no knob.
    """
    if "balancing" in changes:
        knobs = replace(knobs, **balancing_fields(changes["balancing"]))
    return settle(recipe, replace(knobs, **{name: value for name, value in changes.items() if name != "balancing"}))


def check_changes(recipe: Recipe, knobs: Knobs, changes: Mapping[str, Any]) -> None:
    """Refuse changes that are impossible beside the base's settings as they are.

    Raises:
        SettingsError: a value that its setting can never have, or not beside the others.
    """
    for name in changes:
        if name not in KNOB_FIELDS and name != "balancing":
            raise SettingsError(
                f"{name} cannot differ between twins, which share their weights at the start and their batches. "
                f"Choose one of {', '.join(('balancing', *KNOB_FIELDS))}."
            )
    if "balancing" in changes:
        knobs = replace(knobs, **balancing_fields(changes["balancing"]))
    check(recipe, replace(knobs, **{name: value for name, value in changes.items() if name != "balancing"}))


def first(knobs: Knobs, schedule: Sequence[tuple[int, Knobs]] = ()) -> Kin:
    """The base of a new run; with a schedule, (first step, settings) in the order of the steps, of one that changes
    them itself."""
    if not schedule:
        return Kin(0, 0, None, 0, {}, {0: knobs})
    whole = [(0, knobs), *schedule]
    labels = [
        (number, "; ".join(describe_change(before, after)) or "settings changed")
        for number, ((_, before), (_, after)) in enumerate(pairwise(whole), 1)
    ]
    return Kin(
        *(0, 0, None, 0, {}),
        versions={number: own for number, (_, own) in enumerate(whole)},
        labels=tuple(labels),
        plan=tuple((step, number) for number, (step, _) in enumerate(whole)),
        planned_to=schedule[-1][0],  # the settings that are in force then are the last
    )


def together(recipe: Recipe, knobs: Knobs, changes: Sequence[Mapping[str, Any]]) -> tuple[Kin, ...]:
    """The base of a new run, and twins from the start with these changes.

    Raises:
        SettingsError: some are impossible.
    """
    for own in changes:
        check_changes(recipe, knobs, own)
    others = [
        Kin(number, number, 0, 0, dict(own), {0: changed(recipe, knobs, own)[0]})
        for number, own in enumerate(changes, start=1)
    ]
    return first(knobs), *others


def parting(
    parent: Kin,
    base: Kin,
    number: int,
    lane: int,
    since: int,
    changes: dict[str, Any],
    recipe: Recipe,
    turns: list[tuple[int, int]],
    reached: int,
    version: int,
    behind: int,
) -> Kin:
    """A twin that parts from its parent after step `since`, and follows the base in everything but its changes.

    Args:
        turns: (first step, version) for each of the base's settings in the steps that the twin lacks.
        reached: the newest of those steps, -1 if the run has none yet.
        version: the first free number for its settings.
        behind: the number of the parent's settings in step `since`.
    """
    plan: list[tuple[int, int]] = []
    labels: list[tuple[int, str]] = []
    versions: dict[int, Knobs] = {}
    before = parent.versions.get(behind, parent.knobs)
    for step, theirs in [*turns, (reached + 1, base.version)]:
        knobs, _ = changed(recipe, base.versions.get(theirs, base.knobs), changes)
        if versions and knobs == before:
            continue
        if versions or since:
            labels.append((version, "; ".join(describe_change(before, knobs)) or "parted here"))
        plan.append((step, version))
        versions[version], before = knobs, knobs
        version += 1
    shared = {number: knobs for number, knobs in parent.versions.items() if since and number <= behind}
    return Kin(
        number=number,
        lane=lane,
        parent=parent.number,
        since=since,
        changes=changes,
        versions=shared | versions,
        labels=(*(mark for mark in parent.labels if mark[0] in shared), *labels),
        plan=tuple(plan),
        planned_to=reached,
        lineage=((parent.number, since), *((who, min(until, since)) for who, until in parent.lineage)),
    )


def turns_in(rows: np.ndarray) -> list[tuple[int, int]]:
    """When settings changed in these rows of a history: (first step, version) of each."""
    if not len(rows):
        return []
    new = np.flatnonzero(np.diff(rows["version"].astype(np.int64), prepend=-1))
    return [(int(rows["step"][place]), int(rows["version"][place])) for place in new]
