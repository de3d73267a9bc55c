"""How do the live charts and the visitor's session hear of each other?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from moeviz.config import Recipe
from moeviz.host import Run
from moeviz.live.component import live_charts
from moeviz.ui import fields, session


def charts(run: Run, of: Literal["run", "twins"]) -> None:
    """Draw the live charts of the visitor's run, or those of all its twins."""
    state, key = run.state(), f"charts_of_{of}"
    live_charts(
        run.token,
        visit=session.visitor().visit,
        known={"playing": state.playing, "status": state.status, "version": run.version, "epoch": state.epoch},
        of=of,
        direct=fields.STOPS,
        # Another task or number of experts has another start.
        recorded=of == "run" and replace(run.recipe, seed=Recipe().seed) == Recipe(),
        key=key,
        on_changed=partial(session.surely(_noticed), key),
        on_branch=partial(session.surely(_branched), key),
    )


def _noticed(key: str) -> None:
    """The charts saw that the run is not as the page has it: mostly, drawing the page again is all it takes.

    Where the server has forgotten the page, this is a new visit of it: the charts know which run they showed before.
    """
    shown_before = (session.value(key).get("changed") or {}).get("before")
    if isinstance(shown_before, str):
        session.take_up(shown_before)


def _branched(key: str) -> None:
    """The visitor looks at a past step and wants to branch there."""
    asked = session.value(key).get("branch") or {}
    if isinstance(asked.get("step"), int) and isinstance(asked.get("twin"), int):
        session.visitor().branching = asked["step"], asked["twin"]
