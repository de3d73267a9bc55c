"""How does a run leave the program? As a table of its steps, and as one summary.

Shapes: L layers, E experts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from moeviz import metrics
from moeviz.config import SettingsError

LATE_SHARE = 0.2
ENDINGS = (".parquet", ".csv", ".json")


def table(rows: np.ndarray, settings: dict[str, Any]) -> pa.Table:
    """One line per step. Values per layer or expert become columns such as `max_vio_l0` and `load_l0_e7`.

    `settings` travel as the table's metadata (Parquet keeps it).
    """
    columns = {}
    for name in rows.dtype.names:
        values = rows[name]
        for index in np.ndindex(values.shape[1:]):
            suffix = "".join(f"_{kind}{number}" for kind, number in zip("le", index, strict=False))
            columns[name + suffix] = np.ascontiguousarray(values[(slice(None), *index)])
    return pa.table(columns).replace_schema_metadata({"moeviz": json.dumps(settings)})


def check_ending(path: Path) -> None:
    """Refuse a file whose ending names no format.

    Raises:
        SettingsError: the ending is not one of `ENDINGS`.
    """
    if path.suffix.lower() not in ENDINGS:
        raise SettingsError(f"{path.name} does not say its format. End the name in {', '.join(ENDINGS)}.")


def write(path: Path, rows: np.ndarray, settings: dict[str, Any]) -> None:
    """Write the steps as Parquet, CSV or JSON (a list of objects, NaN as null), by the file's ending."""
    check_ending(path)
    steps = table(rows, settings)
    if path.suffix.lower() == ".parquet":
        pyarrow.parquet.write_table(steps, path)
    elif path.suffix.lower() == ".csv":
        pyarrow.csv.write_csv(steps, path)
    else:
        lines = [
            {name: None if value != value else value for name, value in step.items()} for step in steps.to_pylist()
        ]
        path.write_text(json.dumps({"settings": settings, "steps": lines}), encoding="utf-8")


def summarize(rows: np.ndarray) -> dict[str, Any]:
    """The figures to compare runs by. "Late" means the last 20 % of steps (at least one).

    task_loss, mtp_loss, max_vio_batch, max_vio_floor, straggler, dropped_fraction, fan_out: late means, over layers
    too. max_vio_batch_worst_layer: late mean of the worst layer. max_vio_global: MaxVio of the summed late load, mean
    over layers; max_vio_global_worst_layer: its largest. eval_loss, specialisation: of the last evaluation, mean over
    layers. interference_router_ratio, interference_trunk_ratio: mean over the late steps that were probed.
    dead_experts: of the last step, summed over layers. None is what was not measured.
    """
    late = rows[-max(1, round(LATE_SHARE * len(rows))) :]
    evaluated = rows[np.isfinite(rows["eval_loss"])][-1:]
    per_batch, worst_per_batch = metrics.mean_and_worst(late["max_vio"].mean(0))
    summed, worst_summed = metrics.mean_and_worst(metrics.max_vio_global(late["load"]))
    return {
        "steps": int(rows["step"][-1]),
        "task_loss": _mean(late["task_loss"]),
        "mtp_loss": _mean(late["mtp_loss"]),
        "eval_loss": _mean(evaluated["eval_loss"]),
        "max_vio_batch": per_batch,
        "max_vio_batch_worst_layer": worst_per_batch,
        "max_vio_global": summed,
        "max_vio_global_worst_layer": worst_summed,
        "straggler": _mean(late["straggler"]),
        "specialisation": _mean(evaluated["specialisation"]),
        "interference_router_ratio": _mean(late["interference_router_ratio"]),
        "interference_trunk_ratio": _mean(late["interference_trunk_ratio"]),
        "max_vio_floor": float(late["fair_max_vio"].mean()),
        "dropped_fraction": float(late["dropped_fraction"].mean()),
        "dead_experts": int(late["dead_experts"][-1].sum()),
        "fan_out": float(late["fan_out"].mean()),
    }


def summarize_held_out(loss: float, joint_LEC: np.ndarray) -> dict[str, float | None]:
    """The figures of an evaluation after the last step, by the names that `summarize` gives them."""
    return {"eval_loss": loss, "specialisation": _mean(metrics.specialisation(joint_LEC))}


def _mean(values: np.ndarray) -> float | None:
    """The mean of what was measured, if anything was. A ratio that was infinite is left out."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
