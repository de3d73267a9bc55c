"""The live charts as a good Streamlit programmer would write them, with nothing of ours in the browser.

The same workers, recipe, knobs and steps as the playground; a fragment draws six keyed `st.plotly_chart` again and
again. It has less to do than our page: one slider, the controls of the run, no numbers, no identities.

    python -m streamlit run benchmarks/plotly_page/app.py     from the repository's root, whose configuration it shares

The address says the settings as the playground's does.
"""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from benchmarks.plotly_page.figures import figures
from moeviz.config import show
from moeviz.host import Run
from moeviz.live.routes import routes
from moeviz.ui import fields, hosting

SPEEDS = {"1/s": 1.0, "10/s": 10.0, "50/s": 50.0, "max": None}
EVERY = (0.1, 0.25, 0.5, 1.0)
MOST_ROWS = 500  # about one per pixel of a chart
CONFIG = {"displaylogo": False}


def page() -> None:
    """Controls once per interaction; the charts again and again by themselves."""
    st.set_page_config(page_title="st.plotly_chart", layout="wide")
    st.html("<style>.stMainBlockContainer { padding-left: 1.5rem; padding-right: 1.5rem; }</style>")  # as ours
    run = visitors_run()
    with st.sidebar:
        st.select_slider(
            "Bias update speed u",
            fields.STOPS["u"],
            value=run.knobs.u,
            key="u",
            format_func=show,
            on_change=turn,
            args=(run,),
        )
    with st.container(horizontal=True):
        playing = run.state().playing
        st.button("Pause" if playing else "Run", key="run", on_click=run.pause if playing else run.play)
        speed = st.segmented_control("Speed", list(SPEEDS), key="speed", default="50/s", label_visibility="collapsed")
        every = st.segmented_control("Seconds", EVERY, key="every", default=0.25, label_visibility="collapsed")
        st.caption(f"run {run.token}")
    run.set_speed(SPEEDS[speed or "50/s"])
    st.fragment(charts, run_every=every or 1.0)(run)


def visitors_run() -> Run:
    """The run of this tab; a new one begins with what the address asks for."""
    run = hosting.host().get(st.session_state.get("token", ""))
    if run is None:
        recipe, knobs, _ = fields.from_link(st.query_params.to_dict())
        run = hosting.host().create(recipe, knobs)
        st.session_state["token"] = run.token
    return run


def turn(run: Run) -> None:
    """The slider was moved."""
    run.set_knobs(replace(run.knobs, u=st.session_state["u"]))


def charts(run: Run) -> None:
    """Six charts of the run so far."""
    run.touch()
    _, rows = run.records_since(-1, -1, MOST_ROWS)
    if not len(rows):
        return
    columns = st.columns(3)
    for place, (name, figure) in enumerate(figures(rows).items()):
        columns[place % 3].plotly_chart(figure, key=name, theme=None, config=CONFIG)


if __name__ == "__main__":
    page()
else:
    # Our routes only tell the benchmark which step a run has reached.
    app = st.App(__file__, routes=routes(hosting.host), lifespan=hosting.lifespan)
