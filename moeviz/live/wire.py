"""How do new steps travel from the server to the browser?

One answer to one pull is: one byte `FORMAT`, three bytes of length, a JSON header of that length, then the new rows
column by column as in `LAYOUT`, little-endian, nothing at all where there are no rows. Only what the browser draws
travels, and nothing that it can work out to the bit (`derive`).

Each column begins with a byte that says how it goes on:

`SAME`   one value of four bytes for all.
`COUNT`  one value of four bytes for the first row, one more for each row after it: steps without a gap.
1, 2, 4  so many bytes per value. Whole numbers are differences to the row before, zigzag (0, -1, 1, -2 as 0, 1, 2, 3);
         numbers with a point are their bits. Value after value along time, layer by layer and expert by expert; first
         the low bytes of all, then the next: a compressor finds little bytes among little bytes.

Loads are counts (exact). Biases are whole multiples of the header's `scale`, off by no more than 1/32767 of the
largest |b| of the message, well under a pixel; where one is no finite number, all travel as they are, without a scale.

Two columns travel as what is left of a guess, which is nearly always nothing:

`dropped_load`  the guess is what exceeds the layer's `drop_limit`, the least that an expert kept that had to drop;
                0, and no guess, where that is not the rule (devices drop, not experts).
`bias`          the guess is that each expert's bias moved by the header's `push` (in units of `scale`; 0 if left out)
                against the load of the row before, which is what the sign rule does (DeepSeek-V3, 2.1.2).
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np

FORMAT = 2  # the browser refuses another one; raise it with every change to what is written here
SAME, COUNT = 0, 8
WORTH_DEFLATING = 200  # bytes; what is shorter gains less than the header of the answer costs
LEVEL, LARGE, LEVEL_OF_LARGE = 6, 20_000, 1  # a long catch-up is deflated in a third of the time and a tenth larger

# Column, what it holds, and how many values per row: 1, one per layer, or one per layer and expert.
LAYOUT = (
    ("step", "whole", "step"),
    ("version", "whole", "step"),
    ("task_loss", "point", "step"),
    ("eval_loss", "point", "step"),
    ("fair_max_vio", "point", "step"),
    ("fair_max_vio_p95", "point", "step"),
    ("fair_min_load_p05", "point", "step"),
    ("steps_per_second", "newest", "step"),  # the screen shows the newest alone: it stands for all rows
    ("routed_differently", "point", "step"),  # between twins
    ("fan_out", "point", "layer"),
    ("dead_experts", "whole", "layer"),
    ("load", "whole", "expert"),
    ("drop_limit", "whole", "layer"),
    ("dropped_load", "whole", "expert"),  # load - kept_load
    ("bias", "bias", "expert"),
)
# What may be left out of a header, being mostly so.
USUAL = {"status": "ready", "message": "", "notice": "", "playing": True, "marks": [], "push": 0}


def encode(rows: np.ndarray, header: dict[str, Any]) -> bytes:
    """Rows of a `History` and a header as one message.

    The header gains `shape` (rows, layers, experts), `scale`, the unit of the biases, and `push`.
    """
    header = header | {"shape": [len(rows), *rows.dtype["load"].shape]}
    columns = {}
    if len(rows):
        columns = {name: rows[name] for name, _, _ in LAYOUT if name in rows.dtype.names}
        columns |= _drops(rows)
        if scale := _scale(rows["bias"]):
            columns["bias"], push = _biases(rows, scale)
            header |= {"scale": scale, "push": push}
    header = {name: value for name, value in header.items() if name not in USUAL or value != USUAL[name]}
    body = b"".join(_column(columns[name], kind) for name, kind, _ in LAYOUT) if columns else b""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return bytes([FORMAT]) + len(text).to_bytes(3, "little") + text + body


def deflate(message: bytes) -> bytes:
    """The message as `Content-Encoding: deflate`, which a browser undoes by itself."""
    return zlib.compress(message, LEVEL if len(message) < LARGE else LEVEL_OF_LARGE)


def decode(message: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The inverse of `encode`, as the browser does it: header, and one array per column (rows first).

    The header gains what is `USUAL` and `n`, `layers` and `experts`, its shape; the columns gain what `derive` makes.

    Raises:
        ValueError: the message is of another format.
    """
    if message[0] != FORMAT:
        raise ValueError(f"This message has format {message[0]}, not {FORMAT}.")
    place = 4 + int.from_bytes(message[1:4], "little")
    header = USUAL | json.loads(message[4:place])
    n, layers, experts = header["n"], header["layers"], header["experts"] = header["shape"]
    widths = {"step": 1, "layer": layers, "expert": layers * experts}
    if not n:
        columns = {name: np.zeros((0, widths[per])) for name, _, per in LAYOUT}
        return header, columns | derive(columns, layers)
    columns = {}
    for name, kind, per in LAYOUT:
        whole = kind == "whole" or (kind == "bias" and "scale" in header)
        columns[name], place = _read(message, place, n, widths[per], whole)
    load_NLE = columns["load"].reshape(n, layers, experts)
    columns["dropped_load"] += _beyond(load_NLE, columns["drop_limit"]).reshape(n, -1)
    if "scale" in header:
        moved = columns["bias"] + header["push"] * _pushes(load_NLE).cumsum(0).reshape(n, -1)
        columns["bias"] = (moved * header["scale"]).astype("<f4")
    return header, columns | derive(columns, layers)


def derive(columns: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """Columns that follow from loads: `kept_load`, `max_vio` and `dropped_fraction` as `metrics` has them."""
    load, dropped = columns["load"], columns["dropped_load"]
    load_NLE = load.reshape(len(load), layers, load.shape[1] // layers).astype(float)
    pairs_NL = load_NLE.sum(-1)
    mean_NL = np.maximum(pairs_NL / load_NLE.shape[-1], 1e-300)
    max_vio = np.where(pairs_NL > 0, (load_NLE.max(-1) - mean_NL) / mean_NL, 0.0)
    dropped_fraction = dropped.reshape(load_NLE.shape).sum(-1) / np.maximum(pairs_NL, 1)
    return {
        "kept_load": load - dropped,
        "max_vio": max_vio.astype("<f4"),
        "dropped_fraction": dropped_fraction.astype("<f4"),
    }


def _column(values: np.ndarray, kind: str) -> bytes:
    if kind == "newest":
        return bytes([SAME]) + values[-1:].tobytes()
    if kind == "point" or (kind == "bias" and values.dtype == np.float32):
        return _point(values)
    return _whole(values.astype(np.int64))


def _drops(rows: np.ndarray) -> dict[str, np.ndarray]:
    """The columns `drop_limit` and `dropped_load`, the latter without what the former lets one guess."""
    load_NLE, kept_NLE = rows["load"].astype(np.int64), rows["kept_load"].astype(np.int64)
    dropped_NLE = load_NLE - kept_NLE
    if not dropped_NLE.any():
        return {"drop_limit": np.zeros(load_NLE.shape[:2], np.int64), "dropped_load": dropped_NLE}
    limit_NL = np.where(dropped_NLE > 0, kept_NLE, load_NLE.max()).min(-1)
    left_NLE = dropped_NLE - _beyond(load_NLE, limit_NL)
    helps_NL = np.abs(left_NLE).sum(-1) < dropped_NLE.sum(-1)
    return {
        "drop_limit": limit_NL * helps_NL,
        "dropped_load": np.where(helps_NL[..., None], left_NLE, dropped_NLE),
    }


def _beyond(load_NLE: np.ndarray, limit_NL: np.ndarray) -> np.ndarray:
    """What exceeds the limit; nothing where that is 0."""
    return np.maximum(load_NLE - limit_NL[..., None], 0) * (limit_NL > 0)[..., None]


def _biases(rows: np.ndarray, scale: float) -> tuple[np.ndarray, int]:
    """The biases as whole multiples of `scale`, without what the header's `push` lets one guess; and that push."""
    whole_NLE = np.rint(rows["bias"] / scale).astype(np.int64)
    moves_NLE = whole_NLE[1:] - whole_NLE[:-1]
    if not moves_NLE.any():
        return whole_NLE, 0
    pushes_NLE = _pushes(rows["load"].astype(np.int64))
    agreeing = np.abs(moves_NLE[moves_NLE * pushes_NLE[1:] > 0])
    push = int(np.median(agreeing)) if agreeing.size else 0
    if np.abs(moves_NLE - push * pushes_NLE[1:]).sum() >= np.abs(moves_NLE).sum():
        push = 0
    return whole_NLE - push * pushes_NLE.cumsum(0), push


def _pushes(load_NLE: np.ndarray) -> np.ndarray:
    """Which way the sign rule pushes: 1 where the expert had less than its layer's mean a row ago, -1 where more."""
    pushes_NLE = np.zeros(load_NLE.shape, np.int64)
    before_NLE = load_NLE[:-1]
    pushes_NLE[1:] = np.sign(before_NLE.sum(-1, keepdims=True) - before_NLE * before_NLE.shape[-1])
    return pushes_NLE


def _whole(values: np.ndarray) -> bytes:
    values = values.reshape(len(values), -1)
    first, steps = values[0], values[1:] - values[:-1]
    rises = steps.any()
    if not rises and (first == first[0]).all():
        return bytes([SAME]) + int(first[0]).to_bytes(4, "little", signed=first[0] < 0)
    if values.shape[1] == 1 and rises and (steps == 1).all():
        return bytes([COUNT]) + int(first[0]).to_bytes(4, "little")
    changes = np.concatenate([values[:1], steps]).T
    zigzag = np.where(changes < 0, -2 * changes - 1, 2 * changes)
    return _planes(zigzag.astype("<u4"), (int(zigzag.max()).bit_length() + 7) // 8)


def _point(values: np.ndarray) -> bytes:
    bits = np.ascontiguousarray(values.reshape(len(values), -1).T).view("<u4")
    if (bits == bits[0, 0]).all():
        return bytes([SAME]) + bits[0, :1].tobytes()
    return _planes(bits, 4)


def _planes(values: np.ndarray, size: int) -> bytes:
    """The lowest `size` bytes of each value, all lowest ones first."""
    size = 4 if size > 2 else size
    parts = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 4)[:, :size]
    return bytes([size]) + parts.T.tobytes()


def _read(message: bytes, place: int, n: int, width: int, whole: bool) -> tuple[np.ndarray, int]:
    """The values of a column, rows first, and where the next column begins."""
    size, place = message[place], place + 1
    if size in (SAME, COUNT):
        value = np.frombuffer(message, ("<i4" if whole else "<f4"), 1, place)
        values = np.repeat(value, n * width).reshape(n, width)
        return values + np.arange(n)[:, None] * (size == COUNT), place + 4
    parts = np.zeros((n * width, 4), np.uint8)
    parts[:, :size] = np.frombuffer(message, np.uint8, n * width * size, place).reshape(size, -1).T
    bits = parts.view("<u4").reshape(width, n)
    place += n * width * size
    if not whole:
        return bits.view("<f4").T, place
    changes = (bits >> 1).astype(np.int64) ^ -(bits & 1).astype(np.int64)
    return changes.cumsum(1).T, place


def _scale(bias: np.ndarray) -> float:
    """The unit in which the biases travel: 0 if one of them is no finite number.

    The sign rule moves every bias by the same u, so that u, or a whole part of it, makes small numbers of them.
    """
    largest = float(np.abs(bias).max())
    if not np.isfinite(largest):
        return 0.0
    finest = max(largest, 1e-12) / 32767
    scale = _move(bias, finest) or finest
    misfit = np.abs(bias[0] / scale - np.rint(bias[0] / scale)).max() * scale
    if misfit > finest / 4:
        scale /= np.ceil(scale / finest)
    return float(f"{scale:.9g}")


def _move(bias: np.ndarray, finest: float) -> float:
    """By how much every bias of these rows moves, where they all move by the same; otherwise 0."""
    moves = np.abs(np.diff(bias.astype(np.float64), axis=0))
    moves = moves[moves > finest]
    return float(moves.mean()) if moves.size and moves.max() < 1.001 * moves.min() else 0.0
