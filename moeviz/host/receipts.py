"""Which receipt has a visitor's run, or why has it none?

A receipt tells settings, changes and hashes, and that is enough only for a run that was trained in one piece: with one
set of versions, every change known, and never diverged. A person is told which of these is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host.block import MOST_TURNS, Course
from moeviz.receipt import Receipt, issue


def issued(
    recipe: Recipe,
    rows: np.ndarray,
    course: Course,
    versions: Mapping[int, Knobs],
    trained_by: Sequence[Mapping[str, Any]],
    text: bytes | None = None,
) -> Receipt:
    """The receipt of a run up to the last of these rows.

    Args:
        recipe: what it built.
        rows: of its history, all that are kept.
        course: under which settings its steps were made.
        versions: these settings by their number.
        trained_by: versions, device and kind of machine; of several, one after the other.
        text: the visitor's own, if it learned one.

    Raises:
        SettingsError: it has none, and why.
    """
    if not len(rows) or rows["step"][-1] == 0:
        raise SettingsError("This run has made no step yet, so it has no receipt. Run it first.")
    last = int(rows["step"][-1])
    course = course.until(last)
    if course.resumed is not None:
        raise SettingsError(
            f"This run diverged before step {course.resumed} and went on from its last good state, which a receipt "
            f"cannot tell. Reset it and run it again without what made it diverge."
        )
    if not course.whole or any(number not in versions for _, number in course.turns):
        raise SettingsError(
            f"The settings of this run were changed more than {MOST_TURNS} times, and not every change is known any "
            f"more, so it has no receipt. Reset it and run it again."
        )
    if len(trained_by) != 1:
        raise SettingsError(
            "This run was begun with other versions of what computes than it went on with, so no machine gives it "
            "again and it has no receipt. Reset it and run it again."
            if trained_by
            else "What trained this run is not known yet. Ask again in a moment."
        )
    plan = [(step, versions[number]) for step, number in course.turns]
    if not plan or plan[0][0] != 0:
        raise SettingsError("The first settings of this run are not known any more. Reset it and run it again.")
    return issue(recipe, plan, rows, text=text, **trained_by[0])
