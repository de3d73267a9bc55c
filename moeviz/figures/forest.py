"""How far is each setting from the base, and how surely? A forest plot: mean differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from moeviz.figures import theme
from moeviz.paired import INTERVAL, Difference


def figure(name: str, rows: Sequence[tuple[str, Difference]], base: str) -> go.Figure:
    """One figure of `moeviz.paired.FIGURES` under each setting minus the same under `base`.

    An interval that excludes 0 has a full mark, one that does not an open one; a single seed has a mark and no
    interval. Settings without any seed in common with the base have no mark.
    """
    drawn = [(label, one) for label, one in rows if one.mean is not None]
    figure = go.Figure()
    figure.add_vline(x=0, line={"width": 1.5, "color": theme.GREY})
    figure.add_scatter(
        x=[one.mean for _, one in drawn],
        y=[label for label, _ in drawn],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [0 if one.high is None else one.high - one.mean for _, one in drawn],
            "arrayminus": [0 if one.low is None else one.mean - one.low for _, one in drawn],
            "thickness": 2,
            "width": 6,
        },
        mode="markers",
        marker={
            "size": 10,
            "color": theme.BLUE,
            "symbol": ["circle" if one.apart else "circle-open" for _, one in drawn],
            "line": {"width": 2, "color": theme.BLUE},
        },
        customdata=[[_interval(one)] for _, one in drawn],
        hovertemplate="<b>%{y}</b><br>%{x:.3g} on average<br>%{customdata[0]}<extra></extra>",
        showlegend=False,
    )
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(title=f"{theme.TITLES[name]}: difference to {base}", nticks=6)
    return theme.styled(figure, 100 + 30 * max(len(drawn), 1), margin={"l": 8, "r": 12, "t": 8, "b": 8})


def _interval(one: Difference) -> str:
    seeds = f"{len(one.seeds)} seed{'s' * (len(one.seeds) != 1)}"
    return f"{seeds}, no interval" if one.low is None else f"{INTERVAL} {one.low:.3g} to {one.high:.3g}, {seeds}"
