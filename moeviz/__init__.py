"""A playground for mixture-of-experts routing: a toy model trains live while people change how it routes.

What a notebook needs is here by name: `from moeviz import Knobs, Recipe, Engine, route, sign_rule, max_vio`. A name is
looked up when it is first asked for, so that importing the package imports neither torch nor anything else.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_OFFERED = {
    "config": ("BALANCING", "Knobs", "Recipe", "SettingsError", "check", "settle"),
    "presets": ("PRESETS", "preset"),
    "routing": (
        "AFFINITIES",
        "ROUTERS",
        "Routing",
        "affinity",
        "expert_choice",
        "gate",
        "hash_table",
        "hashed",
        "limit_to_groups",
        "route",
        "selection_score",
        "sigmoid",
        "softmax",
        "sqrtsoftplus",
        "token_choice",
    ),
    "capacity": ("keep", "rank_in_bin"),
    "balance": (
        "BIAS_RULES",
        "LOSSES",
        "BiasState",
        "added_loss",
        "batch_loss",
        "communication_loss",
        "device_loss",
        "gshard_loss",
        "momentum_rule",
        "no_rule",
        "proportional_rule",
        "quantile_rule",
        "rms_rule",
        "sequence_loss",
        "sign_centred_rule",
        "sign_rule",
        "switch_loss",
        "z_loss",
    ),
    "metrics": (
        "dead_experts",
        "fair_router",
        "fan_out",
        "interference",
        "joint_counts",
        "max_vio",
        "max_vio_global",
        "mean_and_worst",
        "mutual_information",
        "relative_load",
        "specialisation",
        "straggler",
    ),
    "snapshot": ("History", "Snapshot"),
    "engine": ("Engine", "TrainingDiverged", "Twins"),
    "stacking": ("stacks_exactly",),
}
_HOME = {name: module for module, names in _OFFERED.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'moeviz' has no attribute {name!r}")
    return getattr(importlib.import_module(f"moeviz.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
