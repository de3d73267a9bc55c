"""How did each value of a sweep come out, step by step? Small multiples: a panel per value, all with the same axes.

Shapes: N steps, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moeviz.figures import theme

HEIGHT = 230
MOST_ROWS = 160  # of a line: a small panel has few more pixels


def ranges(rows: Sequence[np.ndarray], steps: int) -> dict[str, tuple[float, float]]:
    """The axes that all panels of a sweep share, wide enough for all these rows: `steps`, `max_vio`, `task_loss`."""
    found = {"steps": (0.0, float(steps))}
    for name in ("max_vio", "task_loss"):
        values = [_mean(own[name]) for own in rows if len(own)]
        values = np.concatenate(values) if values else np.zeros(0)
        values = values[np.isfinite(values)]
        top = 1.0 if not values.size else float(values.max())
        if name == "task_loss" and values.size:
            # A run that explodes would press all others flat; where it leaves the panel, it is seen to leave.
            top = min(top, 4 * float(np.median(values)))
        found[name] = (0.0, _round_up(top))
    return found


def panel(
    label: str, rows: Mapping[int, np.ndarray], shared: Mapping[str, tuple[float, float]], note: str = ""
) -> go.Figure:
    """One value: MaxVio above the fair router's floor, and task loss, a thin line for each seed.

    Args:
        label: the value, as u=0.003.
        rows: of each seed, N steps (`moeviz.snapshot.record_dtype`); of MaxVio the mean over L is drawn.
        shared: as `ranges` gives it.
        note: what else must be said, as that a seed diverged.
    """
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.1)
    for number, (seed, every) in enumerate(rows.items()):
        own = spread(every)
        line = {"width": 1.4, "dash": theme.DASHES[number % len(theme.DASHES)]}
        for place, (name, colour) in enumerate([("max_vio", theme.BLUE), ("task_loss", theme.ORANGE)], start=1):
            figure.add_scatter(
                x=own["step"].astype(int).tolist(),
                y=[round(value, 4) for value in _mean(own[name]).astype(float).tolist()],
                mode="lines", line=line | {"color": colour}, name=f"seed {seed}", showlegend=False,
                hovertemplate="%{y:.3g}", row=place, col=1,
            )  # fmt: skip
    floors = [float(own["fair_max_vio"][-1]) for own in rows.values() if len(own)]
    if floors:
        figure.add_hline(
            y=round(float(np.mean(floors)), 4), line={"width": 1, "dash": "dash", "color": theme.GREY}, row=1, col=1
        )
    figure.update_yaxes(title="MaxVio", range=list(shared["max_vio"]), nticks=4, row=1, col=1)
    figure.update_yaxes(title="task loss", range=list(shared["task_loss"]), nticks=4, row=2, col=1)
    figure.update_xaxes(range=list(shared["steps"]), nticks=4)
    title = f"<b>{label}</b>{f' · {note}' if note else ''}"
    return theme.styled(
        figure, HEIGHT, title={"text": title, "font": {"size": theme.TEXT + 1}, "x": 0.02, "y": 0.97},
        hovermode="x unified", margin={"l": 8, "r": 8, "t": 30, "b": 4},
    )  # fmt: skip


def spread(rows: np.ndarray, most: int = MOST_ROWS) -> np.ndarray:
    """At most so many of the rows, as dense at the begin as at the end: highest and lowest MaxVio of equal stretches,
    and the newest."""
    if len(rows) <= most:
        return rows
    values, kept = _mean(rows["max_vio"]), {len(rows) - 1}
    for places in np.array_split(np.arange(len(rows)), most // 2 - 1):
        kept |= {int(places[np.argmin(values[places])]), int(places[np.argmax(values[places])])}
    return rows[sorted(kept)]


def _mean(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 1 else values.mean(1)


def _round_up(value: float) -> float:
    """A little above, to two digits, so that an axis does not move with every step."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value * 1.05 / unit) * unit, 10)
