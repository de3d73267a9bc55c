"""How does a visitor see all their runs at once, open one again, and compare settings that several seeds have?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import streamlit as st

from moeviz import paired
from moeviz.figures import forest, run_map, theme
from moeviz.figures.dot import Dot
from moeviz.ui import dots, saving, session, sweeps

VIEWS = {"eval_loss": "Held-out loss", "specialisation": "Specialisation"}


def still_going() -> None:
    """Say that a run leaves its dot when it rests."""
    run = session.there()
    if run is None or not (state := run.state()).playing:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f":material/pending: Your run is at step {state.step:,} and leaves its dot when it rests.")
        session.button("Pause it", key="map_pause", on_click=run.pause)


def empty() -> None:
    """What a visitor reads who has no dot yet."""
    with st.container(border=True):
        st.markdown(
            f"**No dot yet.** A run leaves a dot here when it rests after at least {dots.FEWEST_STEPS} steps, and so "
            "does every cell of a sweep. Run something on the Playground, or begin with fifteen dots:"
        )
        session.button(
            "Start an example sweep",
            key="map_example",
            icon=":material/science:",
            on_click=session.start_sweep,
            args=(sweeps.EXAMPLE, "pages/sweep.py"),
        )


def drawn(found: Sequence[Dot]) -> None:
    """The map and, where a dot was clicked, the way back to its settings."""
    view = st.segmented_control(
        "Upwards", VIEWS, default="eval_loss", key="map_view", format_func=VIEWS.get, required=True,
        persist_state="session",
    )  # fmt: skip
    st.plotly_chart(
        run_map.figure(found, view),
        key="map",
        on_select=partial(session.surely(session.picked), "map"),
        selection_mode="points",
        config=saving.config("map"),
        alt="Every finished run as a dot, MaxVio against held-out loss. The menu below lists the same runs.",
    )
    st.caption(
        "Left is balanced, low is a good fit. The larger a dot, the more its experts specialise. Held-out "
        "loss and specialisation are of the newest evaluation, MaxVio is the mean of the last 20 % of steps."
    )
    saving.choice()
    _reopen({run_map.key_of(dot): dot for dot in reversed(found)})


def _reopen(found: dict[str, Dot]) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        session.show_dot("map_dot", found)
        key = st.selectbox(
            "Run",
            found,
            key="map_dot",
            index=None,
            format_func=lambda key: found[key].label,
            placeholder="Click a dot, or choose a run here",
            on_change=session.surely(session.picked),
            args=("map_dot",),
        )
        dot = found.get(key)
        session.button(
            "Open its settings on the Playground",
            key="map_open",
            type="primary",
            disabled=dot is None,
            on_click=session.open_settings,
            args=(dot.recipe, dot.knobs) if dot else (),
        )


def differences(found: Sequence[Dot]) -> None:
    """Settings that have seeds in common, compared seed by seed."""
    settings = dots.settings_of(found)
    comparable = [base for base in settings if dots.beside(base, settings, "eval_loss")]
    if not comparable:
        st.caption("Two settings of the same size and length with two equal seeds each are compared here.")
        return
    st.markdown("**Differences over equal seeds**")
    place = st.selectbox(
        "Compared with", range(len(comparable)), key="map_base", format_func=lambda place: comparable[place].label
    )
    base = comparable[place]
    told: dict[str, list[tuple[str, paired.Difference]]] = {}
    for column, name in zip(st.columns(2), sweeps.SHOWN_OPEN, strict=True):
        rows = dots.beside(base, settings, name)
        column.plotly_chart(
            forest.figure(name, rows, "the chosen setting"),
            key=f"map_forest_{name}",
            config=saving.config(f"differences-{name}"),
            alt=f"Differences in {theme.TITLES[name]}; the sentences below say the same.",
        )
    for name in paired.FIGURES:
        for label, difference in dots.beside(base, settings, name):
            told.setdefault(label, []).append((name, difference))
    sweeps.sentences(told, "the chosen setting")
