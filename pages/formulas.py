"""What does every number mean, and which code computes it?"""

import streamlit as st

from moeviz.live import charts
from moeviz.ui import source

SHOWN = {
    "A token chooses its experts": [("routing", name) for name in ("route", "affinity", "limit_to_groups", "gate")],
    "A full expert or device drops tokens": [("capacity", name) for name in ("capacity", "keep", "rank_in_bin")],
    "What balances": [("balance", name) for name in ("sign_rule", "batch_loss", "sequence_loss", "added_loss")],
    "What is measured": [("metrics", name) for name in ("max_vio", "dead_experts", "fan_out", "fair_router")],
}

with st.container(width=760):
    st.header("Formulas and code")
    st.write("Every number on the Playground comes from a forward pass of a real model. This is what they mean:")
    for text in charts.CHARTS.values():
        st.markdown(f"**{text.title}.** {text.meaning}")
        st.code(text.formula, language=None, wrap_lines=True)
        st.caption(f"Source: {text.source}")

    st.write("And these are the very functions that compute them, read from the running program's files:")
    for title, functions in SHOWN.items():
        st.subheader(title)
        for module, name in functions:
            with st.expander(f"`moeviz.{module}.{name}`"):
                st.code(source.of(module, name), language="python", wrap_lines=True)
