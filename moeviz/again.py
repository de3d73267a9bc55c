"""Does a run come out the same again? Train what a receipt tells, and see what receipt that gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from moeviz import machine
from moeviz.engine import Engine, TrainingDiverged, available_devices
from moeviz.receipt import Receipt, check_text, issue
from moeviz.snapshot import BUCKET, History


def train(theirs: Receipt, text: bytes | None, made: Callable[[int], object]) -> Receipt:
    """The receipt that this machine gives to the same run.

    It is trained on the receipt's device where there is one, else on the best that is here. A run that diverges before
    its last step has a receipt of fewer steps.

    Args:
        theirs: what to train.
        text: the person's own text, if the run learned one.
        made: told after each step that one was made.

    Raises:
        SettingsError: the text is not the one that the run learned.
    """
    check_text(theirs, text)
    recipe, plan = theirs.plan()
    here = replace(recipe, device=theirs.device if theirs.device in available_devices() else "auto")
    engine = Engine(here, plan[0][1], text)
    history = History(recipe.num_layers, recipe.num_experts, capacity=BUCKET)  # which keeps the first row whatever
    history.append(engine.observe())
    changes = dict(plan)
    knobs = changes[0]
    try:
        for step in range(1, theirs.steps + 1):
            knobs = changes.get(step, knobs)
            history.append(engine.step(knobs))
            made(1)
    except TrainingDiverged:
        pass  # what was made until then is compared
    _, rows = history.since(-1)
    done = [(step, knobs) for step, knobs in plan if step <= engine.step_number]
    return issue(recipe, done, rows, text=text, **machine.circumstances(engine.device))
