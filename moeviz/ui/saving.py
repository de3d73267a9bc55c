"""As what do the figures of finished runs leave the page? Live charts have buttons of their own for both."""

from __future__ import annotations

from typing import Any

import streamlit as st

from moeviz.figures import theme
from moeviz.ui import session

KEY = "chart_format"


def choice() -> None:
    """Ask for the format."""
    st.segmented_control(
        "Save charts as",
        theme.FORMATS,
        default=session.visitor().chart_format,
        key=KEY,
        format_func=str.upper,
        required=True,
        on_change=session.surely(_remember),
        help="The camera in the corner of each chart saves it.",
    )


def config(name: str) -> dict[str, Any]:
    """What Plotly is told for a figure whose file is to have this name."""
    return theme.config(name, session.visitor().chart_format)


def _remember() -> None:
    session.visitor().chart_format = session.value(KEY)
