"""What happens to the experts when I change how tokens are routed?"""

import streamlit as st

from moeviz import presets
from moeviz.live.component import live_charts
from moeviz.ui import controls, fields, session, transport, twins

me = controls.sidebar("playground")
run = session.run()

transport.earlier()
transport.sentences()
transport.trouble(run)
transport.bar(run)
twins.beside(run)
twins.branch(run)

state = run.state()
live_charts(
    run.token,
    visit=me.visit,
    known={"playing": state.playing, "status": state.status, "version": run.version, "epoch": state.epoch},
    direct=fields.STOPS,
    key=session.CHARTS,
    on_changed=session.noticed,
    on_branch=session.branched,
)

if name := presets.matching_preset(me.knobs):
    chosen = presets.PRESETS[name]
    st.caption(f"**{chosen.title}.** {chosen.expect} Source: {chosen.source}.")
