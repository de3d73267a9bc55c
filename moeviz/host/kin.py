"""Which runs are trained together in one visitor's run, and what tells them apart?

They have one recipe, so the same first weights and the same batches. Twin 0 is the base. Every other one parted from
its parent after some step and has changes: single settings in which it differs from the base, whatever the base's are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

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
from moeviz.host.block import LANES, Block, Lane
from moeviz.host.limits import Share

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

    def labels_since(self, version: int) -> list[tuple[int, str]]:
        """Its changes of settings after `version`: (version, what changed)."""
        return [(number, label) for number, label in self.labels if number > version]

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


@dataclass(frozen=True, slots=True)
class Family:
    """All twins of a run, and what they share. Replaced whole, never changed: readers take no lock."""

    recipe: Recipe
    text: bytes | None  # the visitor's own, if they learn one
    members: dict[int, Kin]  # by their numbers, the base first
    numbers: int = field(compare=False)  # that were given so far

    @classmethod
    def of(cls, recipe: Recipe, text: bytes | None, twins: Iterable[Kin], numbers: int = 0) -> Family:
        """These; of a run that had others, with the numbers that were given so far."""
        members = {one.number: one for one in twins}
        return cls(recipe, text, members, max(numbers, 1 + max(members)))

    @property
    def base(self) -> Kin:
        """The one from which the others differ."""
        return self.members[0]

    @property
    def share(self) -> Share:
        """What they take of the server."""
        return Share.of(self.recipe, len(self.members))

    @property
    def lanes(self) -> tuple[int, ...]:
        """Their parts of the block."""
        return tuple(one.lane for one in self.members.values())

    def in_lanes(self, block: Block) -> dict[int, Lane]:
        """The parts themselves, by the twins' numbers."""
        return {number: block.lane(one.lane) for number, one in self.members.items()}

    def for_worker(self) -> tuple[worker.Twin, ...]:
        """What their worker is told."""
        return tuple(one.for_worker() for one in self.members.values())

    @property
    def free_lane(self) -> int:
        """For one more."""
        return next(lane for lane in range(LANES) if lane not in self.lanes)

    @property
    def next_version(self) -> int:
        """The first number for settings that none of them had yet."""
        return 1 + max(one.version for one in self.members.values())

    def other(self, number: int) -> Kin:
        """A twin that may be changed or removed.

        Raises:
            SettingsError: it is the base, or gone.
        """
        if number == 0:
            raise SettingsError("This is the base, from which the others differ. Change or remove one of them.")
        if number not in self.members:
            raise SettingsError("This twin is not there any more. Choose another one.")
        return self.members[number]

    def having(self, one: Kin) -> Family:
        """With this twin, in place of the one that had its number."""
        return replace(self, members=self.members | {one.number: one}, numbers=max(self.numbers, one.number + 1))

    def without(self, number: int) -> Family:
        """All but one; errors as for `other`."""
        self.other(number)
        return replace(self, members={other: one for other, one in self.members.items() if other != number})

    def again(self) -> Family:
        """At step 0, and with nothing behind them."""
        return replace(self, members={number: one.again() for number, one in self.members.items()})

    def following(self, knobs: Knobs) -> dict[int, Knobs]:
        """The settings of those that get others when the base has these."""
        wanted = {number: changed(self.recipe, knobs, one.changes)[0] for number, one in self.members.items()}
        return {number: own for number, own in wanted.items() if own != self.members[number].knobs}

    def turned(self, knobs: Mapping[int, Knobs], told: bool = True) -> Family:
        """Under these settings from now on, with a label for people if it is `told`."""
        now, version = dict(self.members), self.next_version
        for number, own in knobs.items():
            label = "; ".join(describe_change(now[number].knobs, own)) if told else ""
            now[number] = now[number].turned(own, version, label)
        return replace(self, members=now)


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
