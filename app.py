"""The frame: one server, one navigation. `streamlit run app.py` starts it.

Streamlit runs this file twice over: imported once, it makes the server with the routes that feed the live charts; as a
script, once per interaction, it draws the page that a visitor asked for.
"""

import streamlit as st

from moeviz.live.routes import routes
from moeviz.ui import hosting

if __name__ == "__main__":
    st.set_page_config(page_title="moeviz", page_icon="moeviz/ui/icon.svg", layout="wide")
    # Streamlit has no setting for the page's side margins, and charts need the width of a projector.
    st.html("<style>.stMainBlockContainer { padding-left: 1.5rem; padding-right: 1.5rem; }</style>")
    st.logo("moeviz/ui/icon.svg", size="large")
    st.navigation(
        [
            st.Page("pages/playground.py", title="Playground", icon=":material/play_circle:", default=True),
            st.Page("pages/compare.py", title="Compare", icon=":material/compare_arrows:"),
            st.Page("pages/sweep.py", title="Sweep", icon=":material/stacked_line_chart:"),
            st.Page("pages/map.py", title="Map", icon=":material/scatter_plot:"),
            st.Page("pages/formulas.py", title="Formulas and code", icon=":material/function:"),
            st.Page("pages/contract.py", title="How we differ", icon=":material/fork_right:"),
        ],
        position="top",
    ).run()
else:
    app = st.App(__file__, routes=routes(hosting.host), lifespan=hosting.lifespan)
