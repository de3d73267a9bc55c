"""How do new steps travel from the server to the browser?

One answer to one pull is: a 4-byte length, a JSON header of that length (padded with spaces so that the data begins on
a multiple of 4), then the new rows column by column, little-endian, each column padded to 4 bytes. Column by column,
so that the browser reads every column as one typed array without copying.

Loads are 16-bit counts (exact). Biases are 16-bit multiples of `bias_scale`, the largest |b| of the message / 32767:
exact to 1/32767 of that largest bias, well under a pixel.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

# The kept load is left out where it equals the load, which is every step without token dropping.
COLUMNS = (
    "step",
    "version",
    "task_loss",
    "added_loss",
    "eval_loss",
    "fair_max_vio",
    "fair_max_vio_p95",
    "fair_min_load_p05",
    "steps_per_second",
    "mtp_loss",
    "interference_router_ratio",
    "interference_router_cosine",
    "interference_trunk_ratio",
    "interference_trunk_cosine",
    "max_vio",
    "fan_out",
    "dropped_fraction",
    "max_vio_global",
    "straggler",
    "specialisation",
    "dead_experts",
    "bias",
    "load",
    "kept_load",
)


def encode(rows: np.ndarray, header: dict[str, Any]) -> bytes:
    """Rows of a `History` and a header as one message.

    The header gains `n` (rows), `layers`, `experts`, `bias_scale` and `columns`: [name, NumPy type without byte order,
    values per row] in the order of the data.
    """
    num_layers, num_experts = rows.dtype["load"].shape
    scale = max(float(np.abs(rows["bias"]).max(initial=0.0)), 1e-12) / 32767
    columns, body = [], []
    for name in COLUMNS:
        if name == "kept_load" and np.array_equal(rows["kept_load"], rows["load"]):
            continue
        values = np.rint(rows["bias"] / scale).astype("<i2") if name == "bias" else np.ascontiguousarray(rows[name])
        columns.append([name, values.dtype.str[1:], int(np.prod(values.shape[1:], dtype=int))])
        data = values.tobytes()
        body.append(data + bytes(-len(data) % 4))
    header = header | {
        "n": len(rows),
        "layers": num_layers,
        "experts": num_experts,
        "bias_scale": scale,
        "columns": columns,
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    return len(text).to_bytes(4, "little") + text + b"".join(body)


def decode(message: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The inverse of `encode`, as the browser does it: header, and one array per column (rows first)."""
    length = int.from_bytes(message[:4], "little")
    header = json.loads(message[4 : 4 + length])
    offset, arrays = 4 + length, {}
    for name, kind, width in header["columns"]:
        values = np.frombuffer(message, "<" + kind, header["n"] * width, offset).reshape(header["n"], width)
        arrays[name] = values * header["bias_scale"] if name == "bias" else values
        offset += values.nbytes + -values.nbytes % 4
    arrays.setdefault("kept_load", arrays["load"])
    return header, arrays
