"""What does one knob do, over all its values and several seeds?"""

import streamlit as st

from moeviz.ui import controls, sweeps, transport

me = controls.sidebar(
    "sweep", "These are the settings of **every run of a sweep**, in all but the knob that it varies."
)

transport.words()
sweeps.plan(me.recipe, me.knobs)
sweep = me.finds.sweep
if sweep is None:
    sweeps.example()
else:
    sweeps.watch(sweep)
    if sweep.progress().status != "running":
        sweeps.results(sweep)
        st.page_link(
            "pages/map.py", label="See these runs beside all others on the map", icon=":material/scatter_plot:"
        )
