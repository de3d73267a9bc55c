"""What happens to the experts when I change how tokens are routed?"""

import streamlit as st

from moeviz import presets
from moeviz.ui import controls, live, session, transport, twins

me = controls.sidebar("playground")
run = session.run()

transport.words(run)
transport.bar(run)
twins.beside(run)
twins.branch(run)

live.charts(run, of="run")

if name := presets.matching_preset(me.knobs):
    chosen = presets.PRESETS[name]
    st.caption(f"**{chosen.title}.** {chosen.expect} Source: {chosen.source}.")
