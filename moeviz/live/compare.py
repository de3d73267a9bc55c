"""How do the charts of twins, side by side, get onto a page?

The second Streamlit component: the same loader and the same promises as that of the Playground (`component`), other
modules in the browser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from moeviz.live import assets, charts
from moeviz.live.component import LOADER
from moeviz.live.routes import prefix

_mount = st.components.v2.component("moeviz_compare", js=LOADER, isolate_styles=False)


def twin_charts(
    token: str,
    *,
    visit: str,
    known: dict[str, Any],
    direct: Mapping[str, Sequence[float]] | None = None,
    key: str = "compare",
    on_changed: Callable[[], None] | None = None,
    on_branch: Callable[[], None] | None = None,
) -> Any:
    """Mount the charts of all twins of the run `token`; arguments and `result.changed` are those of `live_charts`.

    With `on_branch` the charts offer to branch from the past step that they show. It is called when somebody does, and
    `result.branch` then holds {"step": int, "twin": id of the twin to branch from}.
    """
    data = {
        "base": f"{prefix()}/live",
        "version": assets.VERSION,
        "token": token,
        "visit": visit,
        "known": known,
        "module": "compare.js",
        "direct": {name: list(values) for name, values in (direct or {}).items()},
        "charts": charts.texts_of_twins()["charts"],
        "branch": on_branch is not None,
    }
    return _mount(key=key, data=data, on_changed_change=on_changed or _nothing, on_branch_change=on_branch or _nothing)


def _nothing() -> None:
    """Streamlit gives the result a value only where it has somebody to call."""
