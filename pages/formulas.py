"""What does every number mean, and which code computes it?"""

import streamlit as st

from moeviz import strategies
from moeviz.live import charts
from moeviz.ui import source

SHOWN = {
    "A token chooses its experts": [
        ("routing", name) for name in ("route", "affinity", "selection_score", "limit_to_groups", "gate")
    ],
    "A full expert or device drops tokens": [("capacity", name) for name in ("capacity", "keep", "rank_in_bin")],
    "What balances": [("balance", name) for name in ("update", "added_loss")],
    "What is measured": [
        ("metrics", name)
        for name in (
            *("max_vio", "max_vio_global", "fair_router", "dead_experts", "fan_out"),
            *("straggler", "specialisation", "interference"),
        )
    ],
}
# Each strategy is a function of its own name and its kind, but for these.
NAMED_OTHERWISE = {"none": "no", "multiplicative": "sign", "top_k": "token_choice", "hash": "hashed"}
STRATEGIES = [
    ("Affinities", strategies.AFFINITIES, "routing", ""),
    ("Routers", strategies.ROUTERS, "routing", ""),
    ("Bias rules", strategies.BIAS_RULES, "balance", "_rule"),
    ("Losses", strategies.LOSSES, "balance", "_loss"),
]

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

    st.write("And these are all the strategies there are to choose from:")
    for kind, known, module, ending in STRATEGIES:
        st.subheader(kind)
        for key, strategy in known.items():
            name = NAMED_OTHERWISE.get(key, key) + ending
            with st.expander(f"{strategy.title}: `moeviz.{module}.{name}`"):
                st.write(strategy.meaning)
                st.code(strategy.formula, language=None, wrap_lines=True)
                st.caption(f"Source: {strategy.source}")
                st.code(source.of(module, name), language="python", wrap_lines=True)
