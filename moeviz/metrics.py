"""How unbalanced is a router, and how unbalanced would a fair one look?

Plain functions of loads and choices, NumPy in, NumPy out. Shapes: T tokens, E experts, K experts per token, L layers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from moeviz.snapshot import Fair

DEAD_WINDOW = 20  # steps over which an expert must have had at least DEAD_SHARE of the mean load to count as alive
DEAD_SHARE = 0.01


def max_vio(load_E: np.ndarray) -> np.ndarray:
    """(max load - mean load) / mean load over the last axis (arXiv 2408.15664, eq. 4); 0 without any load."""
    mean = load_E.mean(-1)
    return np.divide(load_E.max(-1) - mean, mean, out=np.zeros_like(mean, dtype=float), where=mean > 0)


def dead_experts(load_E: np.ndarray) -> np.ndarray:
    """How many experts have under 1 % of the mean load, over the last axis."""
    return (load_E < DEAD_SHARE * load_E.mean(-1, keepdims=True)).sum(-1)


def fan_out(chosen_TK: np.ndarray, num_experts: int, num_groups: int) -> float:
    """Mean number of groups (nodes) that a token touches."""
    if num_groups == 1 or chosen_TK.size == 0:
        return 1.0
    groups_TK = np.sort(chosen_TK // (num_experts // num_groups), axis=-1)
    return float(1 + (np.diff(groups_TK, axis=-1) != 0).sum(-1).mean())


@lru_cache(maxsize=64)
def fair_router(tokens: int, top_k: int, num_experts: int) -> Fair:
    """MaxVio of a router that sends each token to K distinct experts at random: the floor that no rule can beat.

    Monte Carlo with a fixed seed; independent tokens, so real text, whose tokens are correlated, lies a little higher.
    """
    rng = np.random.default_rng(0)
    draws = int(np.clip(3e8 / (tokens * top_k**2), 20, 200))  # under a second at any size
    loads_DE = np.stack([_fair_load(rng, tokens, top_k, num_experts) for _ in range(draws)])
    violations = max_vio(loads_DE)
    smallest = loads_DE.min(-1) / loads_DE.mean(-1)
    return Fair(float(violations.mean()), float(np.quantile(violations, 0.95)), float(np.quantile(smallest, 0.05)))


def _fair_load(rng: np.random.Generator, tokens: int, top_k: int, num_experts: int) -> np.ndarray:
    """Loads of one draw. Floyd's sampling: K distinct experts per token at a cost of K draws, not E."""
    chosen_TK = np.empty((tokens, top_k), dtype=np.int64)
    for slot, last in enumerate(range(num_experts - top_k, num_experts)):
        pick_T = rng.integers(0, last + 1, tokens)
        taken_T = (chosen_TK[:, :slot] == pick_T[:, None]).any(-1)
        chosen_TK[:, slot] = np.where(taken_T, last, pick_T)
    return np.bincount(chosen_TK.ravel(), minlength=num_experts)
