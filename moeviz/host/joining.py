"""How does a twin join a run that has made steps already?

Up to some step it shares its parent's past. From there on it gets a plan: the base's settings as they were in force,
turn by turn, in everything but its own changes. Its worker makes these steps when all go back
(docs/decisions/0007-twins-join-by-going-back.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from moeviz.config import Knobs, SettingsError, describe_change
from moeviz.host.block import Block
from moeviz.host.kin import Family, Kin, changed


@dataclass(frozen=True, slots=True)
class Gap:
    """The steps that the others have and a twin that joins them lacks."""

    since: int  # the last that it shares with its parent
    turns: Sequence[tuple[int, int]]  # (first step, version) for each of the base's settings in them
    reached: int  # the newest of them, -1 if the run has none yet
    behind: int  # the number of the parent's settings in step `since`


def join(block: Block, family: Family, parent: Kin, since: int, changes: dict[str, Any]) -> Kin:
    """A twin that parts from its parent after step `since`, in a lane of its own with the past that they share.

    Raises:
        SettingsError: there is no such past any more.
    """
    base, theirs = block.lane(0).history, block.lane(parent.lane)
    reached = block.step if base.last_step >= 0 else -1
    _check_past(since, reached, earliest=max(base.whole_since, theirs.history.whole_since))
    rows, shared = base.since(since if since else -1)[1], theirs.history.since(-1)[1]
    shared = shared[shared["step"] <= since] if since else shared[:0]
    behind = int(shared["version"][-1]) if len(shared) else parent.version
    one = parting(family, parent, changes, Gap(since, turns_in(rows), reached, behind))
    parted = theirs.parted if theirs.parted and theirs.parted.step <= since else None
    block.lane(one.lane).begin(block.epoch, shared, parted, theirs.course.until(since) if since else None)
    return one


def parting(family: Family, parent: Kin, changes: dict[str, Any], gap: Gap) -> Kin:
    """A twin that parts from its parent before these steps, and follows the base in everything but its changes."""
    since, turns = gap.since, _turns(family, changes, gap)
    numbered = list(enumerate(turns, family.next_version))
    befores = [parent.versions.get(gap.behind, parent.knobs), *(knobs for _, knobs in turns)]
    labels = [
        (version, "; ".join(describe_change(before, knobs)) or "parted here")
        for (version, _), (before, knobs) in zip(numbered, pairwise(befores), strict=True)
    ]
    shared = {number: knobs for number, knobs in parent.versions.items() if since and number <= gap.behind}
    return Kin(
        number=family.numbers,
        lane=family.free_lane,
        parent=parent.number,
        since=since,
        changes=changes,
        versions=shared | {version: knobs for version, (_, knobs) in numbered},
        labels=(*(mark for mark in parent.labels if mark[0] in shared), *(labels if since else labels[1:])),
        plan=tuple((step, version) for version, (step, _) in numbered),
        planned_to=gap.reached,
        lineage=((parent.number, since), *((who, min(until, since)) for who, until in parent.lineage)),
    )


def turns_in(rows: np.ndarray) -> list[tuple[int, int]]:
    """When settings changed in these rows of a history: (first step, version) of each."""
    if not len(rows):
        return []
    new = np.flatnonzero(np.diff(rows["version"].astype(np.int64), prepend=-1))
    return [(int(rows["step"][place]), int(rows["version"][place])) for place in new]


def _turns(family: Family, changes: dict[str, Any], gap: Gap) -> list[tuple[int, Knobs]]:
    """When the settings of a twin with these changes are others than before: (first step, settings) of each."""
    base = family.base
    turns = [
        (step, changed(family.recipe, base.versions.get(version, base.knobs), changes)[0])
        for step, version in (*gap.turns, (gap.reached + 1, base.version))
    ]
    return turns[:1] + [after for before, after in pairwise(turns) if after[1] != before[1]]


def _check_past(since: int, reached: int, earliest: int) -> None:
    if not 0 <= since <= max(reached, 0):
        raise SettingsError(f"Step {since} has not been made yet. Part at step {max(reached, 0)} or before.")
    if since < earliest:
        raise SettingsError(
            f"Step {since} is too long ago: before step {earliest} not every step is kept. "
            f"Part at step {earliest} or later, or reset and begin together."
        )
