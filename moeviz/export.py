"""How does a run leave the program? As a table of its steps, as its settings, and as one summary.

The settings come back too: `read_settings` takes every JSON that was written here, or nothing of it.

Shapes: L layers, E experts.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from moeviz import metrics
from moeviz.config import KNOB_FIELDS, RECIPE_FIELDS, Knobs, Recipe, SettingsError, check, check_names

LATE_SHARE = 0.2
FORMATS = ("parquet", "csv", "json")
ENDINGS = tuple(f".{form}" for form in FORMATS)
HAS_SETTINGS = 'Bring a file that the page or `python -m moeviz run --out run.json` wrote: {"recipe": {}, "knobs": {}}.'


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


def tables(runs: Mapping[str, np.ndarray], settings: dict[str, Any]) -> pa.Table:
    """The steps of several runs of one shape, one run after the other; the first column, `twin`, has their names."""
    parts = []
    for name, rows in runs.items():
        one = table(rows, settings)
        parts.append(one.add_column(0, "twin", pa.array([name] * len(rows), pa.string())))
    return pa.concat_tables(parts)


def check_ending(path: Path, endings: Sequence[str] = ENDINGS) -> None:
    """Refuse a file whose ending names no format.

    Raises:
        SettingsError: the ending is not one of `endings`.
    """
    if path.suffix.lower() not in endings:
        raise SettingsError(f"{path.name} does not say its format. End the name in {', '.join(endings)}.")


def write(path: Path, rows: np.ndarray, settings: dict[str, Any]) -> None:
    """Write the steps as `to_bytes` has them, in the format that the file's ending names."""
    check_ending(path)
    path.write_bytes(to_bytes(rows, settings, path.suffix.lower().removeprefix(".")))


def to_bytes(rows: np.ndarray | Mapping[str, np.ndarray], settings: dict[str, Any], form: str) -> bytes:
    """The steps as the content of a file: "parquet", "csv", or "json" (a list of objects, what is not finite as null).
    Of several runs, by their names, as `tables` has them.

    Parquet and JSON hold the settings as well. Numbers are as the run has them, to the last digit.

    Raises:
        SettingsError: `form` is not one of `FORMATS`.
    """
    if form not in FORMATS:
        raise SettingsError(f"{form!r} is no format of a table. Choose {', '.join(FORMATS)}.")
    steps = tables(rows, settings) if isinstance(rows, Mapping) else table(rows, settings)
    file = io.BytesIO()
    if form == "parquet":
        pyarrow.parquet.write_table(steps, file)
    elif form == "csv":
        pyarrow.csv.write_csv(steps, file)
    else:
        lines = [
            {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in step.items()
            }
            for step in steps.to_pylist()
        ]
        file.write(json.dumps({"settings": settings, "steps": lines}).encode())
    return file.getvalue()


def settings_json(recipe: Recipe, knobs: Knobs, **more: Any) -> bytes:
    """Recipe and knobs as a file that people can read and `read_settings` takes back. `more` is told, never read."""
    settings = {"recipe": asdict(recipe), "knobs": asdict(knobs)} | more
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()


def read_settings(data: bytes) -> tuple[Recipe, Knobs]:
    """The recipe and knobs of a file with settings: of `settings_json`, of a JSON table, or of `run --json`.

    What the file leaves out has its default.

    Raises:
        SettingsError: it is no such file, or holds a name, a value or a combination that cannot be.
    """
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        raise SettingsError(f"This is no JSON. {HAS_SETTINGS}") from None
    if isinstance(told, dict) and isinstance(told.get("settings"), dict):
        told = told["settings"]
    if not isinstance(told, dict) or not all(isinstance(told.get(part), dict) for part in ("recipe", "knobs")):
        raise SettingsError(f"There are no settings in this file. {HAS_SETTINGS}")
    check_names(told["recipe"], RECIPE_FIELDS)
    check_names(told["knobs"], KNOB_FIELDS)
    recipe, knobs = Recipe(**told["recipe"]), Knobs(**told["knobs"])
    check(recipe, knobs)
    return recipe, knobs


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
