"""How do runs with different knobs share one pass?

Twins, runs of one recipe trained together, are routed in as few calls as their knobs allow: those that differ only in
strengths (u, the weights of losses, the learning rate) are one group, and the strengths become a tensor with a value
for each.
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
    """Twins that route alike, so that one call decides for all of them."""

    runs: list[int] | None  # None: all there are, or the only run
    knobs: Knobs  # where the twins differ, with a tensor in place of a number


def alone(knobs: Knobs) -> list[Group]:
    """The groups of a single run."""
    return [Group(None, knobs)]


def groups_of(knobs_R: Sequence[Knobs], device: str) -> list[Group]:
    """The groups of twins, in the order of their first members."""
    members: dict[Knobs, list[int]] = {}
    for run, knobs in enumerate(knobs_R):
        rule = "multiplicative" if knobs.bias_rule == "multiplicative" else "none"
        members.setdefault(replace(knobs, bias_rule=rule, **STRENGTHS), []).append(run)
    if len(members) == 1:
        return [Group(None, merged(knobs_R, device))]
    return [Group(runs, merged([knobs_R[run] for run in runs], device)) for runs in members.values()]


def merged(knobs_R: Sequence[Knobs], device: str) -> Knobs:
    """Knobs of several runs as one: a tensor of shape (runs,) for each weight of a loss, (runs, 1, 1) for u and
    damping, the first run's value for everything else."""

    def values(name: str) -> torch.Tensor:
        return torch.tensor([float(getattr(knobs, name)) for knobs in knobs_R], device=device)

    weights = {name: values(name) for name in LOSS_WEIGHTS.values()}
    speeds = {name: values(name)[:, None, None] for name in ("u", "damping")}
    losses = tuple(loss for loss in LOSS_WEIGHTS if any(loss in knobs.losses for knobs in knobs_R))
    return SimpleNamespace(**asdict(knobs_R[0]) | weights | speeds, losses=losses)  # type: ignore[return-value]
