"""What does this visitor have? Their settings, their run, and what must be said to them.

The only module that reads Streamlit's session state: one key for the visitor, and the keys of the controls, which
Streamlit fills. Settings are held here as well, because a control's value is forgotten while its page is not drawn.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import partial
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitAPIException

from moeviz import presets
from moeviz.config import Knobs, Recipe, SettingsError, balancing_fields, check_text, settle
from moeviz.host import Check, Run
from moeviz.host.run import fingerprint
from moeviz.host.sweeping import SweepRun
from moeviz.live.visitor import COOKIE
from moeviz.sweep import Sweep
from moeviz.ui import dots, fields, finds
from moeviz.ui.hosting import host

KEY = "moeviz"
SPEEDS: dict[str, float | None] = {"1/s": 1.0, "10/s": 10.0, "50/s": 50.0, "max": None}  # steps per second
CHARTS_FIRST = 0.12  # seconds that charts need to show what a slider did
STALE_SECONDS = 2.0  # a browser that is so late is slower than a hand that opens a menu and chooses
USUAL_SPEED = "50/s"  # collapse takes a second and recovery three: time to see them happen


@dataclass
class Visitor:
    """One browser tab."""

    recipe: Recipe
    knobs: Knobs
    _: KW_ONLY
    token: str = ""
    visit: str = field(default_factory=lambda: secrets.token_hex(8))  # names this Streamlit session to its charts
    text: bytes | None = None
    rebuild: bool = False  # the run is to be built anew, whatever it is now
    notices: list[str] = field(default_factory=list)
    set_by_code: set[str] = field(default_factory=set)  # controls that a callback moved
    agreed: dict[str, Any] = field(default_factory=dict)  # settings as the tab and its run last had them
    whisper: str = ""  # to be said once, in passing
    offer: str = ""  # token of an earlier run of this browser
    menus: dict[str, tuple[Any, float]] = field(default_factory=dict)  # what a menu showed until when
    chart_format: str = "png"  # that figures are saved in
    page: str = ""  # whose controls were drawn last
    speed: str = USUAL_SPEED
    twins: list[dict[str, Any]] = field(default_factory=list)  # that the address asks for, until the run has them
    locked: bool = True  # whether twins may differ in one setting only
    check: Check | None = None  # of somebody's receipt, under way or done
    finds: finds.Finds = field(default_factory=finds.Finds)
    dot: str = ""  # the one that is looked at
    bound_for: str = ""  # the page that is to be drawn next instead of the one asked for
    answered: set[str] = field(default_factory=set)  # buttons whose click was heard before they were drawn
    undone: list[Callable[[], None]] = field(default_factory=list)  # what was asked for and is not done, or not wholly
    branching: tuple[int, int] | None = None  # step and twin to part from, while the visitor says what is to change


def visitor() -> Visitor:
    """This tab's visitor; a new one begins with what the address asks for.

    `run=TOKEN` in the address is a run of this browser: the tab takes it up with the settings that it has.
    """
    if KEY not in st.session_state:
        asked = st.query_params.to_dict()
        token, twins = asked.pop("run", ""), asked.pop("twins", "")
        speed = {"speed": asked["speed"]} if asked.get("speed") in SPEEDS else {}
        me = _arrive(token, {name: text for name, text in asked.items() if name != "speed"})
        if "speed" in asked and not speed:
            me.notices.append(
                f"In the address: speed={asked['speed'][:40]} is not one of {', '.join(SPEEDS)}. {USUAL_SPEED} is used."
            )
        if not me.token:
            me.twins, refusals = fields.twins_from_link(twins, me.recipe, me.knobs)
            me.notices += refusals
        st.session_state[KEY] = me
        st.session_state["speed"] = me.speed = speed.get("speed", USUAL_SPEED)
        granted = fields.to_link(me.recipe, me.knobs) | speed
        kept = {"run": me.token} if me.token else {}
        kept |= {"twins": twins} if twins else {}
        if asked != granted or token != me.token:
            # The controls read the address themselves when first drawn: correct it before they do.
            st.query_params.from_dict(granted | kept)
            st.rerun()
    return st.session_state[KEY]


def _let_charts_draw() -> None:
    """A slider has just told the run by itself, and its charts are about to show it. A page drawn meanwhile would keep
    server and browser busy with what changes least, and the charts late."""
    if (run := there()) and (left := CHARTS_FIRST - run.steered_ago) > 0:
        time.sleep(left)


def _find_again(me: Visitor) -> None:
    """Have what the browser's other visits found. It has no name before its first run is on the screen."""
    named, run = _browser(), host().get(me.token)
    if owner := fingerprint(named) if named else run and run.owner:
        me.finds = finds.shared(owner, me.finds)


def _arrive(token: str, asked: dict[str, str]) -> Visitor:
    recipe, knobs, notices = fields.from_link(asked)
    whisper = ""
    if token:
        if (run := host().get(token)) and _is_mine(run):
            return _returned(run, asked)
        whisper = "The run is your own." if run else "The run in the address is not kept any more: this is a new one."
    try:
        host().check(recipe)
    except SettingsError as refusal:
        recipe = Recipe()
        knobs, _ = settle(recipe, knobs)
        notices.append(f"In the address: {refusal} The usual sizes are used.")
    earlier = host().runs_of(_browser()) if _browser() else []
    return Visitor(recipe, knobs, notices=notices, whisper=whisper, offer=earlier[0].token if earlier else "")


def _returned(run: Run, asked: dict[str, str]) -> Visitor:
    has = fields.to_link(run.recipe, run.knobs)
    notices = []
    if any(has.get(name) != text for name, text in asked.items()):
        notices.append(
            "The address asks for other settings than your run has: these are the run's. To begin a new run with those "
            "of the address, remove run=… from it."
        )
    me = Visitor(run.recipe, run.knobs, token=run.token, text=run.text, notices=notices)
    me.agreed = fields.values_of(run.recipe, run.knobs)
    return me


def _browser() -> str:
    """What the browser is called; empty until it has been given a name."""
    named = st.context.cookies.get(COOKIE, "")
    return named if isinstance(named, str) else ""  # Streamlit's tests have no browser


def _is_mine(run: Run) -> bool:
    return run.owner is None or bool(_browser() and run.claim(_browser()))


def earlier_run() -> tuple[int, float] | None:
    """Step of the run that this browser left earlier and seconds since; None when there is none to go back to."""
    me = visitor()
    found = {one.token: one for one in host().runs_of(_browser())} if me.offer else {}
    if me.offer not in found or me.offer == me.token:
        return None
    return found[me.offer].step, found[me.offer].idle_seconds


def decline_earlier() -> None:
    """Offer the earlier run no more."""
    visitor().offer = ""


def take_up_earlier() -> None:
    """Leave this tab's run for the one offered, with the settings that one has."""
    if not take_up(visitor().offer):
        visitor().notices.append("That run is not kept any more.")
    visitor().offer = ""


def take_up(token: str) -> bool:
    """Leave this tab's run for another of this browser's, with the settings that one has; whether that could be."""
    me = visitor()
    fresh, run = host().get(me.token), host().get(token)
    if run is None or not _is_mine(run):
        return False
    if fresh is not None and fresh is not run and fresh.state().step == 0:
        fresh.abandon()
    me.token, me.recipe, me.knobs, me.text = run.token, run.recipe, run.knobs, run.text
    me.agreed = fields.values_of(run.recipe, run.knobs)
    me.offer = me.whisper = ""
    choose(**me.agreed)
    return True


def take_controls(page: str) -> Visitor:
    """Read what the controls hold into the visitor's settings; call before the controls of a page are drawn.

    What another tab on the same run has changed is taken over where this tab has not changed it too. Impossible
    combinations move to the nearest possible one, a refused recipe leaves the old one; both are said.
    """
    me = visitor()
    _do_what_was_asked(me)
    _let_charts_draw()
    _find_again(me)
    _arrive_at(me, page)
    me.speed = st.session_state.get("speed") or USUAL_SPEED
    _read_controls(me)
    _show(me)
    return me


def _read_controls(me: Visitor) -> bool:
    """Take what the controls hold; whether it could be had as asked."""
    values = fields.with_the_tasks_sizes(me.recipe, _merged(me))
    before = len(me.notices)
    try:
        recipe = fields.recipe_from(values)
        host().check(recipe)
        me.recipe = recipe
    except SettingsError as refusal:
        me.notices.append(f"{refusal} The run goes on as it was.")
    try:
        me.knobs = fields.knobs_from(values)
    except SettingsError as refusal:
        me.notices.append(f"{refusal} The run goes on as it was.")
    granted = len(me.notices) == before
    me.knobs, settled = settle(me.recipe, me.knobs)
    me.notices += settled
    return granted


def _arrive_at(me: Visitor, page: str) -> None:
    """Streamlit forgets what controls hold, and what the address says, on the way to another page that draws them too:
    there they would begin with their defaults, and turn the run's settings into these."""
    if me.page not in ("", page):
        choose(**fields.values_of(me.recipe, me.knobs))
        st.session_state["speed"] = me.speed
        me.page = page
        # Controls that have been drawn on this page before write into the address themselves, and nobody else may.
        with suppress(StreamlitAPIException):
            st.query_params.update(fields.to_link(me.recipe, me.knobs) | {"speed": me.speed})
        st.rerun()
    me.page = page


def _merged(me: Visitor) -> dict[str, Any]:
    held = fields.values_of(me.recipe, me.knobs)
    values = {name: st.session_state.get(name, value) for name, value in held.items()}
    run = host().get(me.token)
    if run is None or not me.agreed:
        return values
    if not me.rebuild:
        me.text = run.text
    theirs = fields.values_of(run.recipe, run.knobs)
    changed = {name for name, value in theirs.items() if value != me.agreed[name] and values[name] == me.agreed[name]}
    if changed & fields.RECIPE_KEY_SET:
        me.recipe = run.recipe
    return values | {name: theirs[name] for name in changed}


def choose_preset(name: str) -> None:
    """Set all knobs at once; the recipe and the run stay."""
    _choose_knobs(presets.preset(name).knobs)


def choose_balancing(name: str) -> None:
    """Set the bias rule and the weights of all losses at once; the rest and the run stay."""
    _choose_knobs(replace(visitor().knobs, **balancing_fields(name)))


def _choose_knobs(knobs: Knobs) -> None:
    me = visitor()
    me.knobs, settled = settle(me.recipe, knobs)
    me.notices += settled
    choose(**asdict(me.knobs))


def choose(**values: Any) -> None:
    """Set single controls from code."""
    for name, value in values.items():
        st.session_state[name] = value
    visitor().set_by_code.update(values.keys() & fields.values_of(Recipe(), Knobs()).keys())


def surely(act: Callable[..., Any]) -> Callable[..., None]:
    """A callback that does something even where the next request comes at once.

    Streamlit then breaks off what it is doing at the next look into the session's state, be it in the midst of a
    callback, and begins again without it. What was broken off is done from its start before anything else: so whatever
    must not happen twice comes last in a callback.
    """
    me = visitor()

    def callback(*args: Any) -> None:
        me.undone.append(partial(act, *args))
        _do_what_was_asked(me)

    return callback


def _do_what_was_asked(me: Visitor) -> None:
    while me.undone:
        try:
            me.undone[0]()
        except Exception:  # breaking off is none: then it stays first in line
            me.undone.pop(0)
            raise
        me.undone.pop(0)


def button(
    label: str, key: str, on_click: Callable[..., Any], args: tuple = (), make: Callable = st.button, **options: Any
) -> None:
    """`st.button`, or another one that `make` makes, of which no click is lost.

    A page that outlived its Streamlit session, since the server was started anew or the laptop slept, has buttons that
    the new session has yet to draw. Of a click on one of them Streamlit tells the script that draws it, but calls
    nothing. Then that is done before the next drawing, where controls may still be set.
    """
    me = visitor()

    def answer(act: Callable[..., Any]) -> None:
        me.answered.add(key)
        act(*args)

    if make(label, key=key, on_click=answer, args=(surely(on_click),), **options) and key not in me.answered:
        me.undone.append(partial(answer, on_click))  # the next drawing may be told of the click as well
        st.rerun()
    me.answered.discard(key)


def value(name: str) -> Any:
    """What a control holds."""
    return st.session_state[name]


def value_or(name: str, otherwise: Any) -> Any:
    """What a control holds, or something else where it has not been drawn."""
    return st.session_state.get(name, otherwise)


def show_in_menu(name: str, shown: Any) -> None:
    """Have a menu name what is really set, before it is drawn."""
    before = st.session_state.get(name)
    if before != shown:
        visitor().menus[name] = before, time.monotonic()
    st.session_state[name] = shown


def chosen(name: str) -> Any:
    """What the visitor chose in such a menu; None where the browser only brings what the menu showed before.

    It does so while it has not heard yet that the menu shows something else, as between two quick moves of a slider.
    """
    before, until = visitor().menus.get(name, (None, -STALE_SECONDS))
    stale = st.session_state[name] == before and time.monotonic() - until < STALE_SECONDS
    return None if stale else st.session_state[name]


def say(sentence: str) -> None:
    """Show a sentence on the next drawing of the page."""
    visitor().notices.append(sentence)


def notices() -> list[str]:
    """What must be said, each sentence once, until the visitor has read it."""
    return list(dict.fromkeys(visitor().notices))


def whisper() -> str:
    """What is worth a word in passing, once."""
    said, visitor().whisper = visitor().whisper, ""
    return said


def forget_notices() -> None:
    """The visitor has read them."""
    visitor().notices.clear()


def restart_with(uploader: str, keep: str) -> None:
    """Build what the controls ask for, and begin at step 0, also where nothing of it is new.

    The text to learn is the one in an uploader; the one that the run has, where a control says to keep it; else the
    one found on the machine.
    """
    me = visitor()
    before = me.recipe, me.knobs
    if not _read_controls(me):
        return
    upload = st.session_state.get(uploader)
    text = upload.getvalue() if upload else me.text if st.session_state.get(keep) else None
    try:
        if text is not None:
            check_text(text, me.recipe.sequence_length)
    except SettingsError as refusal:
        me.notices.append(f"{refusal} The run goes on as it was.")
        me.recipe, me.knobs = before
    else:
        me.text, me.rebuild = text, True
        run()
    choose(**fields.values_of(me.recipe, me.knobs))


def go_where_bound() -> None:
    """Draw the page that a click asked for instead of this one."""
    page, visitor().bound_for = visitor().bound_for, ""
    if page:
        go_to(page)


def go_to(page: str) -> None:
    """Draw another page. Its controls write the settings into the address, where Streamlit lets nobody else."""
    kept = {name: text for name, text in st.query_params.to_dict().items() if name in ("run", "twins")}
    st.switch_page(page, query_params=kept)


def twins_in_address(run: Run) -> None:
    """Have the address say which twins there are, so that copying it shares them. Those from the past are shared as
    twins from the start: whoever opens the link has no past."""
    said = fields.twins_to_link([twin.changes for twin in run.twins[1:]])
    if said != st.query_params.get("twins", ""):
        if said:
            st.query_params["twins"] = said
        else:
            del st.query_params["twins"]


def run() -> Run:
    """The visitor's run, brought in line with their settings; made if there is none."""
    me = visitor()
    # Whose it is was asked when the tab took it up: on a first visit the browser's name came after the page.
    run = host().get(me.token)
    if run is None:
        run = host().create(me.recipe, me.knobs, me.text)
        me.token = run.token
    elif run.recipe != me.recipe or me.rebuild:
        dots.take_in(me.finds.dots, run, ends=True)
        run.rebuild(me.recipe, me.knobs, me.text)
    else:
        run.set_knobs(me.knobs)
    me.rebuild = False
    me.agreed = fields.values_of(me.recipe, me.knobs)
    wanted, me.twins = me.twins, []
    for changes in wanted:
        try:
            run.add_twin(changes)
        except SettingsError as refusal:
            me.notices.append(str(refusal))
    twins_in_address(run)
    run.set_speed(SPEEDS[me.speed])
    run.touch()
    dots.take_in(me.finds.dots, run)
    return run


def there() -> Run | None:
    """The visitor's run as it is, if there is one. It is neither brought in line nor looked at, so it may be held."""
    me = visitor()
    return host().get(me.token) if host().is_near(me.token) else None


def start_sweep(planned: Sweep, page: str = "") -> None:
    """Begin a sweep in place of the one there was, whose finished cells stay on the map. It is looked at on a page."""
    me = visitor()
    me.bound_for = page
    try:
        # Only the text task learns a text, and the one that the visitor brought belongs to it.
        begun = SweepRun(host(), planned, me.text if planned.recipe.task == "text" else None)
    except SettingsError as refusal:
        me.notices.append(str(refusal))
        return
    if me.finds.sweep is not None:
        me.finds.sweep.cancel()
    me.finds.sweep = begun


def open_settings(recipe: Recipe, knobs: Knobs) -> None:
    """Have the Playground show these settings; values between a slider's stops move to the nearest stop."""
    me = visitor()
    knobs, moved = fields.to_stops(knobs)
    me.notices += moved
    choose(**fields.values_of(recipe, knobs))
    me.bound_for = "pages/playground.py"


def show_dot(menu: str, offered: Collection[str]) -> None:
    """Have a menu name the dot that was clicked, before it is drawn."""
    st.session_state[menu] = visitor().dot if visitor().dot in offered else None


def picked(chart: str) -> None:
    """A dot of the map was clicked, or chosen in the menu below it."""
    held = st.session_state[chart]
    if isinstance(held, str):
        visitor().dot = held
    elif points := held.selection.points:
        visitor().dot = str(points[0]["customdata"][0])


def _show(me: Visitor) -> None:
    wanted = fields.values_of(me.recipe, me.knobs)
    # What a callback set must be set again in the script itself: only then does Streamlit put it into the address.
    moved = {name for name, value in wanted.items() if st.session_state.get(name) != value} | me.set_by_code
    for name in moved & wanted.keys():
        st.session_state[name] = wanted[name]
    me.set_by_code = set()
