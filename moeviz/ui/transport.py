"""How does a visitor run, pause, step and rewind their training?"""

from __future__ import annotations

import secrets

import streamlit as st

from moeviz.config import SettingsError
from moeviz.host import Run
from moeviz.ui import dots, downloads, receipts, session

OPEN_SECONDS = 5.0  # a run that was looked at so recently is on a screen


def bar(run: Run, with_twins: bool = False) -> None:
    """Draw the transport. Space runs and pauses, → steps, Home resets. What it offers to download is the run, or that
    with its twins."""
    state = run.state()
    usable = state.status in ("waiting", "starting", "ready")
    # A single step is over before anybody could pause it: the button does not flicker for it.
    playing = state.playing and state.target != state.step + 1
    # Its gap is such that all of it stands in one row from a width of 1280 on.
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
        session.button(
            "Pause" if playing else "Run",
            key="run_pause",
            type="primary",
            icon=":material/pause:" if playing else ":material/play_arrow:",
            on_click=_toggle,
            args=(run, playing),
            shortcut="Space",
            disabled=not usable,
        )
        session.button(
            "Step", key="step", icon=":material/skip_next:", on_click=run.step, shortcut="Right", disabled=not usable
        )
        session.button(
            "Reset", key="reset", icon=":material/replay:", on_click=_reset, args=(run,), shortcut="Home",
            help="Back to step 0 with the same seed and the settings as they are.",
        )  # fmt: skip
        session.button(
            "New seed", key="new_seed", icon=":material/casino:", on_click=_new_seed, help="Other weights and data."
        )
        st.segmented_control(
            "Speed",
            list(session.SPEEDS),
            key="speed",
            default=session.USUAL_SPEED,
            required=True,
            label_visibility="collapsed",
            bind="query-params",
            help="Steps per second.",
        )
        with st.popover("Run to…", key="run_to", help="Run up to a step, then pause."):
            st.number_input("Step", 1, 1_000_000, 500, key="until", persist_state="session")
            session.button("Run to this step", key="run_until", on_click=_run_until, args=(run,), disabled=not usable)
        downloads.menu(run, with_twins)
        receipts.menu(run)
    receipts.panel()


def words(run: Run | None = None) -> None:
    """Draw what must be said above everything else, also about a run.

    It has a place of its own even where there is nothing to say: what comes below would otherwise change its place in
    Streamlit's order and be made anew, and a menu that is open there would close.
    """
    with st.container():
        if run:
            _earlier()
        _sentences()
        if run:
            _trouble(run)


def _sentences() -> None:
    """Say what could not be done as asked, until it has been read."""
    if said := session.whisper():
        # Whoever opens a link that was shared meets this: no warning, and nothing to put away.
        st.toast(f"These are the settings of the address. {said}", icon=":material/link:", duration="long")
    if notices := session.notices():
        with st.container(horizontal=True, vertical_alignment="center"):
            st.warning("\n\n".join(notices), icon=":material/info:", width="stretch")
            session.button("Got it", key="got_it", on_click=session.forget_notices)


def _earlier() -> None:
    """Offer the run that this browser had before, where there is one."""
    if (found := session.earlier_run()) is None:
        return
    step, seconds = found
    where = "is open in another tab" if seconds < OPEN_SECONDS else f"is kept from {_ago(seconds)}"
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f":material/history: Your earlier run {where}, at step {step:,}.")
        session.button("Take it up again", key="take_up", on_click=session.take_up_earlier)
        session.button("No, thanks", key="decline", type="tertiary", on_click=session.decline_earlier)


def _ago(seconds: float) -> str:
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {word}{'s' if count > 1 else ''} ago"
    return "a moment ago"


def _trouble(run: Run) -> None:
    """Say what stopped the run, with the way out beside it."""
    state = run.state()
    if state.status == "waiting":
        st.info(state.message, icon=":material/hourglass_top:")
    if state.status not in ("failed", "lost"):
        return
    st.error(state.message, icon=":material/error:")
    with st.container(horizontal=True, gap="small"):
        if state.can_go_on:
            session.button(
                "Go on from the last good step",
                key="go_on",
                type="primary",
                on_click=run.go_on,
                help="Charts and steps stay; the weights are the newest that gave numbers, at most 25 updates old. "
                "Change what made it diverge, then run.",
            )
        session.button(
            "Restart from step 0",
            key="restart",
            type="secondary" if state.can_go_on else "primary",
            on_click=run.restart,
        )


def _toggle(run: Run, shown_playing: bool) -> None:
    """Do what the button said, whatever the run has done since it was drawn."""
    if shown_playing:
        run.pause()
    else:
        run.play()


def _reset(run: Run) -> None:
    dots.take_in(session.visitor().finds.dots, run, ends=True)
    run.reset()


def _new_seed() -> None:
    session.choose(seed=secrets.randbelow(10_000))


def _run_until(run: Run) -> None:
    try:
        run.play(until=session.value("until"))
    except SettingsError as refusal:
        session.say(str(refusal))
