"""What do twenty seeded steps look like? Recorded once per preset, and again only on purpose:

    python -m tests.golden

rewrites every file; look at the difference before you commit it, and say in the changelog why runs changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moeviz.config import Knobs, Recipe
from moeviz.engine import Engine
from moeviz.presets import PRESETS

STEPS = 20
FOLDER = Path(__file__).parent
# A text of our own, because the standard library's differs between versions of Python.
TEXT = b"".join(b"The expert for %d is %d. " % (number, number * number % 97) for number in range(400))
TINY_TEXT = Recipe(
    task="text", device="cpu", d_model=16, d_expert=16, num_experts=8, num_layers=2, tokens_per_step=256, seed=5
)

RUNS: dict[str, tuple[Recipe, Knobs]] = {
    **{name: (Recipe(device="cpu"), preset.knobs) for name, preset in PRESETS.items()},
    "tiny_text": (TINY_TEXT, Knobs(bias_rule="sign", top_k=3)),
    "hash_with_every_loss": (
        TINY_TEXT,
        Knobs(
            router="hash",
            gating="sqrtsoftplus",
            alpha=0.1,
            alpha_sequence=0.1,
            alpha_switch=0.1,
            alpha_gshard=0.1,
            alpha_device=0.1,
            alpha_communication=0.1,
            alpha_z=1e-3,
        ),
    ),
    "top_1_with_protected_sequences": (
        Recipe(device="cpu", seed=11, tokens_per_step=512, num_layers=2, shared_experts=1),
        Knobs(top_k=1, token_dropping="expert", capacity_factor=1.1, bias_rule="sign", alpha=0.1),
    ),
}


def record(name: str) -> dict[str, Any]:
    """Losses and loads of a run step by step, and the bias of its last step."""
    recipe, knobs = RUNS[name]
    engine = Engine(recipe, knobs, TEXT if recipe.task == "text" else None)
    snapshots = [engine.step(knobs) for _ in range(STEPS)]
    return {
        "task_loss": [round(shot.task_loss, 7) for shot in snapshots],
        "added_loss": [round(shot.added_loss, 7) for shot in snapshots],
        "load_LE": [shot.load_LE.tolist() for shot in snapshots],
        "kept_load_LE": [shot.kept_load_LE.tolist() for shot in snapshots],
        "bias_LE": [[round(b, 6) for b in layer] for layer in snapshots[-1].bias_LE.tolist()],
    }


def path(name: str) -> Path:
    """Where a run is kept."""
    return FOLDER / f"{name}.json"


def load(name: str) -> dict[str, Any]:
    """A run as it was recorded."""
    return json.loads(path(name).read_text(encoding="utf-8"))


def write(name: str) -> None:
    """Record a run, one step per line so that a difference can be read."""
    columns = []
    for column, values in record(name).items():
        lines = ",\n  ".join(json.dumps(value, separators=(",", ":")) for value in values)
        columns.append(f' "{column}": [\n  {lines}\n ]')
    path(name).write_text("{\n" + ",\n".join(columns) + "\n}\n", encoding="utf-8")
