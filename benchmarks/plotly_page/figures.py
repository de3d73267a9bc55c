"""Rows of a run as six Plotly figures, showing what ours show: the same values, bands, signs and marks.

Made to be quick: NumPy arrays all the way (Plotly sends them as bytes), 4-byte and 1-byte numbers, no template, equal
distances between steps instead of a list of steps per line, and all marks of a chart as one shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

HEIGHT = 238
BAR, OVER, LINE, THIN, MUTED, DROPPED = "#9fbfdf", "#1f5596", "#0b5cad", "#93a5bb", "#565c68", "#a8440b"
BAND = "rgba(70,95,120,0.17)"
CIVIDIS = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc54", "#fee838")
DEAD_WINDOW, DEAD_SHARE = 20, 0.01

Figures = dict[str, go.Figure]


def figures(rows: np.ndarray) -> Figures:
    """All six by name, of the rows that `Run.records_since` gives, oldest first, at least one."""
    even = rows[_evenly(rows["step"])]
    made = {
        "Expert load now": _load(rows),
        "Load history": _history(even),
        "Selection bias": _bias(even),
        "MaxVio": _max_vio(rows),
        "Task loss": _loss(rows),
        "Dropped pairs": _dropped(rows),
    }
    newest = f"step {rows['step'][-1]} · settings {rows['version'][-1]}"
    marks = _marks(rows)
    for name, figure in made.items():
        layout = {"title": {"text": f"{name} · {newest}", "font": {"size": 13}, "x": 0, "y": 0.98}}
        if name != "Expert load now":
            layout |= {"shapes": marks, "xaxis.title.text": "step"}
        figure.update_layout(layout)
    return made


def _evenly(steps: np.ndarray) -> np.ndarray:
    """Which rows lie at equal distances: among thinned rows there are a few more, never one less."""
    stride = int(np.diff(steps).max(initial=1))
    return steps % stride == 0


def _x(rows: np.ndarray) -> dict[str, int]:
    steps = rows["step"]
    return {"x0": int(steps[0]), "dx": int(steps[1] - steps[0]) if len(steps) > 1 else 1}


def _figure(data: list[dict[str, Any]], **layout: Any) -> go.Figure:
    base = {
        "template": None,
        "uirevision": "kept",
        "height": HEIGHT,
        "margin": {"l": 46, "r": 12, "t": 30, "b": 34},
        "showlegend": False,
        "font": {"size": 12},
    }
    return go.Figure({"data": data, "layout": base | layout})


def _load(rows: np.ndarray) -> go.Figure:
    newest = rows[-1]
    load, kept = newest["load"][0], newest["kept_load"][0]
    mean = float(load.mean())
    low, high = mean * newest["fair_min_load_p05"], mean * (1 + newest["fair_max_vio_p95"])
    recent = rows["load"][rows["step"] > int(newest["step"]) - DEAD_WINDOW, 0].sum(axis=0)
    dead, over = recent < DEAD_SHARE * recent.mean(), load > high
    marked = np.flatnonzero(dead | over)
    hatch = {"shape": "/", "fgcolor": DROPPED, "size": 5, "solidity": 0.35}
    bars = [
        {"type": "bar", "y": kept, "marker": {"color": np.where(over, OVER, BAR).tolist()}},
        {"type": "bar", "y": load - kept, "marker": {"color": "rgba(0,0,0,0)", "pattern": hatch}},
        {
            "type": "scatter",
            "mode": "text",
            "x": marked,
            "y": load[marked],
            "text": np.where(dead[marked], "✕", "▲").tolist(),
            "textposition": "top center",
            "hoverinfo": "skip",
        },
    ]
    band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": float(low), "y1": float(high), "layer": "below"}
    balanced = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": mean, "y1": mean, "line": {"dash": "dash"}}
    shapes = [band | {"fillcolor": BAND, "line": {"width": 0}}, balanced]
    return _figure(bars, barmode="stack", bargap=0.16, shapes=shapes)


def _history(rows: np.ndarray) -> go.Figure:
    load = rows["load"][:, 0]
    relative = load / np.maximum(load.mean(axis=1, keepdims=True), 1e-9)
    tone = np.minimum(255, 255 * np.sqrt(relative / 4)).astype(np.uint8)
    scale = [[place / (len(CIVIDIS) - 1), color] for place, color in enumerate(CIVIDIS)]
    heat = {"type": "heatmap", "z": tone.T, "zmin": 0, "zmax": 255, "colorscale": scale, "showscale": False}
    return _figure([heat | _x(rows)], yaxis={"autorange": "reversed"})


def _bias(rows: np.ndarray) -> go.Figure:
    bias = rows["bias"][:, 0]
    bias = np.ascontiguousarray((bias - bias.mean(axis=1, keepdims=True)).T)
    colors = _shades(len(bias))
    lines = [
        {"type": "scatter", "mode": "lines", "y": y, "line": {"color": color, "width": 1}} | _x(rows)
        for y, color in zip(bias, colors, strict=True)
    ]
    return _figure(lines)


def _shades(count: int) -> list[str]:
    """Dark to light, the first to the last expert."""
    places = np.linspace(0, 0.62 * (len(CIVIDIS) - 1), count).round().astype(int)
    return [CIVIDIS[place] for place in places]


def _max_vio(rows: np.ndarray) -> go.Figure:
    steps = rows["step"]
    base = {"type": "scatter", "mode": "lines", "x": steps}
    lines = [
        base | {"y": rows["fair_max_vio_p95"], "fill": "tozeroy", "fillcolor": BAND, "line": {"width": 0}},
        base | {"y": rows["fair_max_vio"], "line": {"color": MUTED, "width": 1.5, "dash": "dash"}},
        base | {"y": rows["max_vio"][:, 0], "line": {"color": LINE, "width": 1.75}},
    ]
    return _figure(lines, yaxis={"rangemode": "tozero"})


def _loss(rows: np.ndarray) -> go.Figure:
    steps, loss = rows["step"], rows["task_loss"]
    held_out = np.isfinite(rows["eval_loss"])
    lines = [
        {"type": "scatter", "mode": "lines", "x": steps, "y": loss, "line": {"color": THIN, "width": 1}},
        {"type": "scatter", "mode": "lines", "x": steps, "y": _smooth(steps, loss), "line": {"color": LINE}},
        {
            "type": "scatter",
            "mode": "markers",
            "x": steps[held_out],
            "y": rows["eval_loss"][held_out],
            "marker": {"color": DROPPED, "symbol": "diamond", "size": 8},
        },
    ]
    return _figure(lines)


def _smooth(steps: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The running mean m <- m + (loss - m) / 16 per step, as ours."""
    smooth = np.empty_like(loss)
    mean, before = float(loss[0]), int(steps[0])
    for place, (step, value) in enumerate(zip(steps.tolist(), loss.tolist(), strict=True)):
        mean += (1 - (15 / 16) ** (step - before)) * (value - mean)
        smooth[place], before = mean, step
    return smooth


def _dropped(rows: np.ndarray) -> go.Figure:
    share = 100 * rows["dropped_fraction"][:, 0]
    area = {"type": "scatter", "mode": "lines", "x": rows["step"], "y": share, "fill": "tozeroy"}
    return _figure([area | {"line": {"color": DROPPED, "width": 1.25}}], yaxis={"rangemode": "tozero"})


def _marks(rows: np.ndarray) -> list[dict[str, Any]]:
    """A dotted line where settings changed; one path for all of a chart, since each shape costs."""
    changed = np.flatnonzero(np.diff(rows["version"].astype(np.int64))) + 1
    if not changed.size:
        return []
    path = " ".join(f"M{step},0L{step},1" for step in rows["step"][changed])
    return [{"type": "path", "path": path, "yref": "paper", "line": {"color": "#6b3fa0", "width": 1.5, "dash": "dot"}}]
