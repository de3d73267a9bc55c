"""How do runs with different knobs share one pass?

Runs of one recipe that are trained together are routed in as few calls as their knobs allow: those that differ only in
strengths (u, the weights of losses, the learning rate) are one group, and the weights of losses become a tensor with a
value for each. A run by itself is a group of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from moeviz.config import LOSS_WEIGHTS, Knobs

# What one call that routes a whole group never reads, or reads as a tensor.
STRENGTHS: dict[str, Any] = dict.fromkeys((*LOSS_WEIGHTS.values(), "u", "damping"), 0.0) | {
    "freeze_after": 0,
    "protected_share": 0.0,
    "mtp_weight": 0.0,
    "probe_every": 0,
    "learning_rate": 0.0,
}


class Group(NamedTuple):
    """Runs that route alike, so that one call decides for all of them."""

    runs: list[int]
    knobs: Knobs  # where the runs differ, with a tensor in place of a number


def groups_of(knobs_R: Sequence[Knobs], device: str) -> list[Group]:
    """The groups of runs, in the order of their first members."""
    members: dict[Knobs, list[int]] = {}
    for run, knobs in enumerate(knobs_R):
        rule = "multiplicative" if knobs.bias_rule == "multiplicative" else "none"
        members.setdefault(replace(knobs, bias_rule=rule, **STRENGTHS), []).append(run)
    return [Group(runs, merged([knobs_R[run] for run in runs], device)) for runs in members.values()]


def merged(knobs_R: Sequence[Knobs], device: str) -> Knobs:
    """Knobs of several runs as one: a tensor of shape (R,) for each weight of a loss, the first run's value for
    everything else."""
    weights = {
        name: torch.tensor([float(getattr(knobs, name)) for knobs in knobs_R], device=device)
        for name in LOSS_WEIGHTS.values()
    }
    losses = tuple(loss for loss in LOSS_WEIGHTS if any(loss in knobs.losses for knobs in knobs_R))
    return SimpleNamespace(**asdict(knobs_R[0]) | weights, losses=losses)  # type: ignore[return-value]
