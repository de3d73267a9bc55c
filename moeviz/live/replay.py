"""How can a whole run be shown where nothing is installed and no network is?

As one HTML file: Plotly.js, the chart modules of the Playground, the steps as wire messages and the settings, with a
player instead of a server (`static/replay.js`). It is opened from a disk, a memory stick or an attachment, and asks
nobody for anything: its own Content-Security-Policy forbids it.

What people wrote (labels, names, a receipt) is data in it, never markup and never script.
"""

from __future__ import annotations

import base64
import html as markup
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np

from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.live import assets, bundle, charts, wire
from moeviz.presets import PRESETS, matching_preset
from moeviz.snapshot import thinned

MOST_BYTES = 9_500_000  # of the whole file; mail servers begin to refuse at 10 MB
MOST_STEPS = 20_000  # of a run that are kept: what a browser still redraws many times a second
MOST_RUNS = 4
_LEVEL = 6
_NO_SCRIPT = (
    "This replay is drawn by the browser: please allow JavaScript for this file. It asks no server for anything."
)


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A run as it is told: its rows are those of `snapshot.record_dtype`, in the order of their steps."""

    recipe: Recipe
    knobs: Knobs  # the newest
    rows: np.ndarray
    labels: Sequence[tuple[int, str]] = ()  # (version of the settings, what changed in words)
    versions: Mapping[int, Knobs] = field(default_factory=dict)  # knobs by version, as far as they are known
    name: str = "A"
    note: str = ""  # what is different in it


def html(runs: Sequence[Recorded], *, title: str, date: str = "", receipt: str = "") -> bytes:
    """The replay of one to four runs as a self-contained page of less than 10 MB.

    Where all steps do not fit, older ones are `thinned`, extremes kept, and the page says so.

    Raises:
        SettingsError: no run, too many, or one without a step.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise SettingsError(f"{len(runs)} runs make no replay. Choose 1 to {MOST_RUNS}.")
    for run in runs:
        if not len(run.rows):
            raise SettingsError(f"Run {run.name} has no step yet, so there is nothing to replay. Train it first.")
    head, tail = _shell()
    told = {"title": title, "date": date, "receipt": receipt, "texts": charts.texts()}
    told["defaults"] = {"recipe": asdict(Recipe()), "knobs": asdict(Knobs())}
    named = f"<title>{markup.escape(title)}</title>".encode(errors="replace")
    room = MOST_BYTES - len(head) - len(tail) - len(_data(told)) - len(named)
    told["runs"] = [_told(run, room // len(runs)) for run in runs]
    return b"".join((head.replace(b"<title></title>", named, 1), _data(told), tail))


def title(recipe: Recipe, knobs: Knobs) -> str:
    """What a run is called: its preset if it has one, its task and its seed."""
    name = matching_preset(knobs)
    strategy = PRESETS[name].title if name else "Own settings"
    return f"{strategy}: {recipe.num_experts} experts, task {recipe.task}, seed {recipe.seed}"


def file_name(recipe: Recipe, knobs: Knobs, step: int, ending: str) -> str:
    """A name that tells files of several runs apart: `moeviz-loss_free-seed0-step500.csv`."""
    return f"moeviz-{matching_preset(knobs) or 'settings'}-seed{recipe.seed}-step{step}.{ending}"


def _told(run: Recorded, room: int) -> dict[str, Any]:
    """A run for the page: its name, and a deflated wire message in letters of no more than `room` bytes."""
    kept = thinned(run.rows, MOST_STEPS)
    message = _message(run, kept)
    while len(message) > room and len(kept) > 1:
        kept = thinned(run.rows, max(int(0.95 * len(kept) * room / len(message)), 1))
        message = _message(run, kept)
    return {"name": run.name, "note": run.note, "message": message}


def _message(run: Recorded, rows: np.ndarray) -> str:
    known = set(np.unique(rows["version"]).tolist())
    header = {
        "epoch": 1,
        "version": int(rows["version"][-1]),
        "playing": False,
        "marks": [[number, label] for number, label in run.labels],
        "recipe": asdict(run.recipe),
        "knobs": asdict(run.knobs),
        "versions": {number: asdict(knobs) for number, knobs in run.versions.items() if number in known},
        "speeds": [
            float(f"{speed:.3g}") if np.isfinite(speed) else None for speed in rows["steps_per_second"].tolist()
        ],
    }
    return base64.b64encode(zlib.compress(wire.encode(rows, header), _LEVEL)).decode()


def _data(told: dict[str, Any]) -> bytes:
    """JSON in which nothing can end the element that it stands in."""
    return json.dumps(told, separators=(",", ":")).replace("<", "\\u003c").encode()


@cache
def _shell() -> tuple[bytes, bytes]:
    """The page before and after its data: the same for every replay."""
    script, plotly = bundle.inline(bundle.script("replay.js")), bundle.inline(assets.plotly().plain.decode())
    # The player stands before Plotly.js, which takes a browser a second to read: the first picture does without it.
    head = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{bundle.policy([script, plotly])}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title></title>
<style>
{assets.text("style.css")}
{assets.text("replay.css")}
</style>
</head>
<body>
<main id="replay"></main>
<noscript><p>{_NO_SCRIPT}</p></noscript>
<script type="application/json" id="recorded">"""
    tail = f"""</script>
<script>{script}</script>
<script>{plotly}</script>
</body>
</html>
"""
    return head.encode(), tail.encode()
