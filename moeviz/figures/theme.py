"""How do all figures look? One place for colours, symbols, margins and words.

The page draws text, grid and background in its own light or dark colours. The colours here are of middle lightness, so
that each has a contrast of 3 to 1 or more with both, and none is told from another by its hue alone.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from moeviz.figures.dot import STRATEGIES

BLUE, ORANGE, GREEN, PURPLE, PINK, GREY = "#2f80d1", "#d9700f", "#0b9e77", "#a063d0", "#d6497f", "#7d8590"
# Colour and symbol of a strategy.
LOOKS: dict[str, tuple[str, str]] = dict(
    zip(
        STRATEGIES,
        [
            (GREY, "x"),
            (ORANGE, "square"),
            (BLUE, "circle"),
            (PURPLE, "diamond"),
            (GREEN, "triangle-up"),
            (PINK, "star"),
        ],
        strict=True,
    )
)
TITLES = {
    "eval_loss": "held-out loss",
    "max_vio_batch": "MaxVio, late mean",
    "specialisation": "specialisation",
    "dropped_fraction": "share dropped",
    "dead_experts": "dead experts",
}
TEXT = 13  # pixels
FORMATS = ("png", "svg")


def config(name: str, form: str) -> dict[str, Any]:
    """What Plotly is told beside the figure: one button, which saves it under a name."""
    picture = {"format": form, "filename": f"moeviz-{name}", "scale": 2 if form == "png" else 1}
    return {"displaylogo": False, "modeBarButtons": [["toImage"]], "toImageButtonOptions": picture}


def styled(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """The figure with the look that all have."""
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 12, "t": 26, "b": 8},
        font={"size": TEXT},
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "title": None},
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
    figure.update_layout(**layout)
    return figure
