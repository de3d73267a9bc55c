"""Which runs are balanced, and what did it cost them? Every finished run as a dot: MaxVio against held-out loss."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import plotly.graph_objects as go

from moeviz.figures import theme
from moeviz.figures.dot import STRATEGIES, Dot

HEIGHT = 460
SIZES = 8, 22  # pixels


def figure(dots: Sequence[Dot], view: str = "eval_loss") -> go.Figure:
    """The map. `view` is what stands upwards: "eval_loss", with specialisation as the size of a dot, or
    "specialisation". A dashed line is what a fair router would show.

    A dot carries its key as `customdata[0]`, as text (`key_of`).
    """
    shown = [dot for dot in dots if view == "eval_loss" or dot.specialisation is not None]
    figure = go.Figure()
    for strategy in STRATEGIES:
        own = [dot for dot in shown if dot.strategy == strategy]
        if own:
            _add(figure, strategy, own, view)
    if floors := [dot.floor for dot in shown]:
        floor = statistics.median(floors)
        figure.add_vline(x=floor, line={"width": 1.5, "dash": "dash", "color": theme.GREY})
        figure.add_annotation(
            x=floor, y=1, yref="paper", text="fair router", showarrow=False, xanchor="left", yanchor="top",
            xshift=4, font={"color": theme.GREY},
        )  # fmt: skip
    figure.update_xaxes(title="MaxVio, mean of the last 20 % of steps (left is balanced)", rangemode="tozero")
    figure.update_yaxes(title=theme.TITLES[view])
    return theme.styled(figure, HEIGHT, clickmode="event+select", hovermode="closest", dragmode="zoom")


def key_of(dot: Dot) -> str:
    """A dot's key as text."""
    return "/".join(map(str, dot.key))


def _add(figure: go.Figure, strategy: str, dots: Sequence[Dot], view: str) -> None:
    colour, symbol = theme.LOOKS[strategy]
    figure.add_scatter(
        x=[round(dot.max_vio, 4) for dot in dots],
        y=[round(dot.eval_loss if view == "eval_loss" else dot.specialisation, 4) for dot in dots],
        mode="markers",
        name=strategy,
        showlegend=True,  # plotly leaves it out where there is one name
        marker={
            "color": colour,
            "symbol": symbol,
            "size": [_size(dot.specialisation if view == "eval_loss" else None) for dot in dots],
            "opacity": 0.85,
            "line": {"width": 1, "color": "rgba(128, 128, 128, 0.6)"},
        },
        customdata=[[key_of(dot), _hover(dot)] for dot in dots],
        hovertemplate="%{customdata[1]}<extra></extra>",
    )


def _size(specialisation: float | None) -> float:
    low, high = SIZES
    return (low + high) / 2 - 3 if specialisation is None else round(low + (high - low) * specialisation, 1)


def _hover(dot: Dot) -> str:
    specialisation = "" if dot.specialisation is None else f"<br>specialisation {dot.specialisation:.2f}"
    changed = "<br>knobs were changed on the way" if dot.changed else ""
    return (
        f"<b>{dot.settings}</b><br>seed {dot.recipe.seed}, {dot.steps:,} steps, {dot.origin}{changed}"
        f"<br>MaxVio {dot.max_vio:.3g} (fair router {dot.floor:.2g})<br>held-out loss {dot.eval_loss:.4g}"
        f"{specialisation}"
    )
