"""Who is dropped when an expert or a device is full?

The pairs of lowest unbiased affinity, after DeepSeek-V2 (arXiv 2405.04434, section 2.2.4): a capacity per bin, the
tokens of some protected sequences exempt. Shapes: T tokens, K experts per token; a bin is an expert or a device.
The axis of runs, where there is one, stands in front, and each run has bins of its own.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from moeviz.config import Knobs
from moeviz.routing import tally


def capacity(tokens: int, top_k: int, bins: int, capacity_factor: float) -> int:
    """Pairs that one bin may take: ceil(factor * T * K / bins), exact for the decimal that people see.

    In binary floats 1.1 * 100 / 10 is a little over 11 and would become 12.
    """
    return math.ceil(Fraction(repr(float(capacity_factor))) * tokens * top_k / bins)


def keep(
    chosen_TK: Tensor,
    affinity_TK: Tensor,
    protected_T: Tensor,
    num_experts: int,
    knobs: Knobs,
    valid_TK: Tensor | None = None,
) -> Tensor:
    """Which (token, expert) pairs stay, as a mask of shape (T, K).

    Args:
        chosen_TK: expert ids.
        affinity_TK: unbiased affinities of the chosen experts.
        protected_T: tokens that are never dropped. They take their places first and may exceed the capacity.
        num_experts: E; with `token_dropping="device"` the bins are `num_devices` contiguous blocks of experts.
        valid_TK: which pairs are no padding (None: all). Padding takes no place and never stays.
    """
    *runs, T, _ = chosen_TK.shape
    bins = knobs.num_devices if knobs.token_dropping == "device" else num_experts
    limit = capacity(T, knobs.top_k, bins, knobs.capacity_factor)
    bin_TK = chosen_TK // (num_experts // bins)
    if valid_TK is not None:
        bin_TK = bin_TK.where(valid_TK, bins)  # padding queues in a bin of its own
    all_bins = (bins + 1) * math.prod(runs)
    bin_TK = bin_TK + torch.arange(0, all_bins, bins + 1, device=bin_TK.device).view(*runs, 1, 1)
    protected_TK = protected_T.unsqueeze(-1).expand_as(chosen_TK)
    rank_P = rank_in_bin(bin_TK.flatten(), affinity_TK.flatten(), protected_TK.flatten(), all_bins)
    kept_TK = (rank_P < limit).view_as(chosen_TK) | protected_TK
    return kept_TK if valid_TK is None else kept_TK & valid_TK


def rank_in_bin(bin_P: Tensor, affinity_P: Tensor, protected_P: Tensor, num_bins: int) -> Tensor:
    """Place of each pair in its bin's queue: protected first, then by affinity; ties keep the earlier pair."""
    by_affinity = affinity_P.argsort(descending=True, stable=True)
    queue = (2 * bin_P + ~protected_P)[by_affinity]
    order = by_affinity[queue.argsort(stable=True)]
    size_B = tally(bin_P, num_bins)
    start_B = size_B.cumsum(0) - size_B
    rank_P = torch.empty_like(bin_P)
    rank_P[order] = torch.arange(len(bin_P), device=bin_P.device) - start_B[bin_P[order]]
    return rank_P
