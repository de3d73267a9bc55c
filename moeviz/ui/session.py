"""What does this visitor have? Their settings, their run, and what must be said to them.

The only module that touches Streamlit's session state: one key for the visitor, and the keys of the controls, which
Streamlit fills. Settings are held here as well, because a control's value is forgotten while its page is not drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from moeviz import presets
from moeviz.config import Knobs, Recipe, SettingsError, check_text, settle
from moeviz.host import Run
from moeviz.ui import fields
from moeviz.ui.hosting import host

KEY = "moeviz"
SPEEDS: dict[str, float | None] = {"1/s": 1.0, "10/s": 10.0, "50/s": 50.0, "max": None}  # steps per second
USUAL_SPEED = "50/s"  # collapse takes a second and recovery three: time to see them happen


@dataclass
class Visitor:
    """One browser tab."""

    recipe: Recipe
    knobs: Knobs
    token: str = ""
    text: bytes | None = None
    stale_text: bool = False  # the run was built from another text
    notices: list[str] = field(default_factory=list)
    set_by_code: set[str] = field(default_factory=set)  # controls that a callback moved


def visitor() -> Visitor:
    """This tab's visitor; a new one begins with what the address asks for."""
    if KEY not in st.session_state:
        asked = st.query_params.to_dict()
        speed = {"speed": asked["speed"]} if asked.get("speed") in SPEEDS else {}
        recipe, knobs, notices = fields.from_link({name: text for name, text in asked.items() if name != "speed"})
        if "speed" in asked and not speed:
            notices.append(
                f"In the address: speed={asked['speed']} is not one of {', '.join(SPEEDS)}. {USUAL_SPEED} is used."
            )
        st.session_state[KEY] = Visitor(recipe, knobs, notices=notices)
        st.session_state["speed"] = speed.get("speed", USUAL_SPEED)
        granted = fields.to_link(recipe, knobs)
        if asked != granted | speed:
            # The controls read the address themselves when first drawn: correct it before they do.
            st.query_params.from_dict(granted | speed)
            st.rerun()
    return st.session_state[KEY]


def take_controls() -> Visitor:
    """Read what the controls hold into the visitor's settings; call before the controls are drawn.

    Impossible combinations move to the nearest possible one, a refused recipe leaves the old one; both are said.
    """
    me = visitor()
    held = fields.values_of(me.recipe, me.knobs)
    values = {name: st.session_state.get(name, value) for name, value in held.items()}
    values = fields.with_the_tasks_sizes(me.recipe, values)
    try:
        me.recipe = fields.recipe_from(values)
    except SettingsError as refusal:
        me.notices.append(f"{refusal} The run goes on as it was.")
    try:
        me.knobs = fields.knobs_from(values)
    except SettingsError as refusal:
        me.notices.append(f"{refusal} The run goes on as it was.")
    me.knobs, settled = settle(me.recipe, me.knobs)
    me.notices += settled
    _show(me)
    return me


def choose_preset(name: str) -> None:
    """Set all knobs at once; the recipe and the run stay."""
    me = visitor()
    me.knobs, settled = settle(me.recipe, presets.preset(name).knobs)
    me.notices += settled
    choose(**{name: value for name, value in fields.values_of(me.recipe, me.knobs).items() if name in fields.KNOB_KEYS})


def choose(**values: Any) -> None:
    """Set single controls from code."""
    for name, value in values.items():
        st.session_state[name] = value
    visitor().set_by_code.update(values.keys() & fields.values_of(Recipe(), Knobs()).keys())


def value(name: str) -> Any:
    """What a control holds."""
    return st.session_state[name]


def say(sentence: str) -> None:
    """Show a sentence on the next drawing of the page."""
    visitor().notices.append(sentence)


def notices() -> list[str]:
    """What must be said, each sentence once, until the visitor has read it."""
    return list(dict.fromkeys(visitor().notices))


def forget_notices() -> None:
    """The visitor has read them."""
    visitor().notices.clear()


def use_text(text: bytes | None) -> None:
    """Learn this text instead of the one found on the machine (None), from step 0."""
    me = visitor()
    try:
        if text is not None:
            check_text(text, me.recipe.sequence_length)
    except SettingsError as refusal:
        me.notices.append(f"{refusal} The run goes on as it was.")
        return
    me.stale_text |= text != me.text
    me.text = text


def noticed() -> None:
    """The charts saw that the run is not as the page has it; drawing the page again is all it takes."""


def run() -> Run:
    """The visitor's run, brought in line with their settings; made if there is none."""
    me = visitor()
    run = host().get(me.token)
    if run is None:
        run = host().create(me.recipe, me.knobs, me.text)
        me.token = run.token
    elif run.recipe != me.recipe or me.stale_text:
        run.rebuild(me.recipe, me.knobs, me.text)
    else:
        run.set_knobs(me.knobs)
    me.stale_text = False
    run.set_speed(SPEEDS[st.session_state.get("speed") or USUAL_SPEED])
    run.touch()
    return run


def _show(me: Visitor) -> None:
    wanted = fields.values_of(me.recipe, me.knobs)
    # What a callback set must be set again in the script itself: only then does Streamlit put it into the address.
    moved = {name for name, value in wanted.items() if st.session_state.get(name) != value} | me.set_by_code
    for name in moved & wanted.keys():
        st.session_state[name] = wanted[name]
    me.set_by_code = set()
