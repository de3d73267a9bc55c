"""How did each value of a sweep come out, step by step? Small multiples: a panel per value, all with the same axes.

Shapes: N steps, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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


def panel(label: str, rows: Mapping[int, np.ndarray], note: str = "") -> dict[str, Any]:
    """One value, as `live_panels` draws it: MaxVio above the fair router's floor, and task loss, a line for each seed.

    Args:
        label: the value, as u=0.003.
        rows: of each seed, N steps (`moeviz.snapshot.record_dtype`); of MaxVio the mean over L is drawn.
        note: what else must be said, as that a seed diverged.
    """
    lines = [
        {
            "seed": seed,
            "step": own["step"].astype(int).tolist(),
            "max_vio": _numbers(_mean(own["max_vio"])),
            "task_loss": _numbers(own["task_loss"]),
        }
        for seed, own in ((seed, spread(every)) for seed, every in rows.items())
    ]
    floors = [float(own["fair_max_vio"][-1]) for own in rows.values() if len(own)]
    return {"label": label, "note": note, "lines": lines, "floor": round(float(np.mean(floors)), 4) if floors else None}


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


def _numbers(values: np.ndarray) -> list[float | None]:
    """JSON has neither NaN nor infinity: where a run diverged its line ends."""
    return [round(value, 4) if math.isfinite(value) else None for value in values.astype(float).tolist()]


def _round_up(value: float) -> float:
    """A little above, to two digits, so that an axis does not move with every step."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value * 1.05 / unit) * unit, 10)
