"""A page around the charts of twins, for tests in a browser: the real component and routes, a stand-in for the run.

    PYTHONPATH=. python -m streamlit run tests/compare_page.py

The address says what is compared: `?experts=64&layers=2&twins=[{"u":0.03},{"gating":"softmax"}]&speed=100`.
"""

import json

import streamlit as st

from moeviz.config import Knobs, Recipe
from moeviz.live.component import live_charts
from moeviz.live.routes import routes
from tests.stand_in_twins import HOST


def _new_run():
    asked = st.query_params
    sizes = {"num_experts": int(asked.get("experts", 16)), "num_layers": int(asked.get("layers", 1))}
    knobs = {"bias_rule": "sign"} | json.loads(asked.get("knobs", "{}"))
    run = HOST.create(Recipe(device="cpu", **sizes), Knobs(**knobs), float(asked.get("speed", 60)))
    for changes in json.loads(asked.get("twins", "[]")):
        run.add_twin(changes)
    return run


def _page():
    st.set_page_config(page_title="Twins", layout="wide")
    st.html("<style>.stMainBlockContainer { padding-left: 1.5rem; padding-right: 1.5rem; }</style>")
    run = HOST.get(st.session_state.get("token") or st.query_params.get("run", ""))
    if run is None:
        run = _new_run()
    st.session_state["token"] = run.token
    with st.container(horizontal=True):
        st.button("Run", on_click=run.play, shortcut="Space")
        st.button("Pause", on_click=run.pause)
        st.button("Reset", on_click=run.reset)
        add = json.loads(st.text_input("Changes", '{"gating": "softmax"}', label_visibility="collapsed"))
        since = int(st.text_input("Since", "0", label_visibility="collapsed"))
        st.button("Add twin", on_click=run.add_twin, args=(add,), kwargs={"since": since})
        st.button("Remove B", on_click=lambda: run.remove_twin(next(t.id for t in run.twins if t.name == "B")))
    state = run.state()
    known = {"playing": state.playing, "status": state.status, "version": run.version, "epoch": state.epoch}
    result = live_charts(run.token, visit="one", known=known, key="compare", of="twins", on_branch=lambda: None)
    if result.branch:
        st.session_state["branch"] = result.branch
    st.caption(f"Branch: {json.dumps(st.session_state.get('branch'))}")


if __name__ == "__main__":
    _page()
else:
    app = st.App(__file__, routes=routes(lambda: HOST))
