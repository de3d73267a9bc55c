"""What keeps experts equally busy? A bias that steers the choice, or a loss that steers the router.

Bias rules run once per optimizer step, on the load of the whole training batch. Losses are added to the task loss:
each per layer, then averaged over layers. Shapes: T tokens in S sequences, E experts, K experts per token, L layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moeviz.config import Knobs
from moeviz.routing import Routing


def no_rule(bias_LE: Tensor, load_LE: Tensor, u: float) -> Tensor:
    """b = 0: selection sees the affinities alone."""
    return torch.zeros_like(bias_LE)


def sign_rule(bias_LE: Tensor, load_LE: Tensor, u: float) -> Tensor:
    """b += u * sign(mean load - load), with sign(0) = 0 (arXiv 2408.15664, algorithm 1; DeepSeek-V3's gamma is u)."""
    # E times (mean - load), in whole numbers: a rounded mean would move experts that are exactly at it.
    shortfall_LE = load_LE.sum(-1, keepdim=True) - load_LE.shape[-1] * load_LE
    return bias_LE + u * torch.sign(shortfall_LE)


def batch_loss(routing: Routing, num_sequences: int) -> Tensor:
    """sum_i f_i P_i over all tokens of the batch (arXiv 2408.15664, eq. 2; batch-wise as in arXiv 2412.19437, 4.5.3).

    f_i = E/(K T) * count_i carries no gradient; P_i = mean over tokens of s_i / sum_j s_j. It is 1 when P is uniform,
    whatever the load.
    """
    T, K = routing.chosen_TK.shape
    E = routing.load_E.numel()
    f_E = routing.load_E.to(routing.scores_TE.dtype) * (E / (K * T))
    P_E = _share(routing.scores_TE).mean(0)
    return (f_E * P_E).sum()


def sequence_loss(routing: Routing, num_sequences: int) -> Tensor:
    """The same within each sequence, then the mean over sequences (arXiv 2412.19437, eq. 17-20).

    f counts the plain top-K of the unbiased affinities, without groups (eq. 18).
    """
    T, K = routing.chosen_TK.shape
    E = routing.load_E.numel()
    scores_SNE = routing.scores_TE.view(num_sequences, T // num_sequences, E)
    top_SNK = scores_SNE.detach().topk(K, dim=-1).indices.flatten(1)
    count_SE = scores_SNE.new_zeros(num_sequences, E).scatter_add_(
        1, top_SNK, torch.ones_like(top_SNK, dtype=scores_SNE.dtype)
    )
    f_SE = count_SE * (E / (K * (T // num_sequences)))
    P_SE = _share(scores_SNE).mean(1)
    return (f_SE * P_SE).sum(-1).mean()


def _share(scores: Tensor) -> Tensor:
    """s_i / sum_j s_j over experts."""
    return scores / (scores.sum(-1, keepdim=True) + 1e-20)


BIAS_RULES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"none": no_rule, "sign": sign_rule}
AUX_LOSSES: dict[str, Callable[[Routing, int], Tensor]] = {"batch": batch_loss, "sequence": sequence_loss}


def added_loss(routings: list[Routing], knobs: Knobs, num_sequences: int) -> Tensor:
    """alpha times the chosen loss, averaged over layers; 0 when there is none."""
    if knobs.aux_loss == "none" or knobs.alpha == 0:
        return routings[0].scores_TE.new_zeros(())
    loss = AUX_LOSSES[knobs.aux_loss]
    return knobs.alpha * torch.stack([loss(routing, num_sequences) for routing in routings]).mean()
