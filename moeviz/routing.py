"""Which experts does each token visit, and how much does each count?

Score, limit to groups, choose, gate. Shapes: T tokens, E experts, K experts per token, G groups of E/G experts,
M groups kept per token. The contract follows DeepSeek-V3 (arXiv 2412.19437, eq. 12-16); where implementations differ,
each function says which way it goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moeviz.config import Knobs, SettingsError


@dataclass(frozen=True, slots=True)
class Routing:
    """One layer's decision for one batch."""

    scores_TE: Tensor  # affinity s, without the bias
    chosen_TK: Tensor  # expert ids, best selection score first
    gates_TK: Tensor  # weight of each chosen expert, from s alone
    load_E: Tensor  # (token, expert) pairs per expert, before drops


def route(logits_TE: Tensor, bias_E: Tensor, knobs: Knobs) -> Routing:
    """Score, limit to groups, choose, gate.

    Args:
        logits_TE: tokens times expert centroids, any float type; computed on in float32 or better.
        bias_E: selection bias. It decides who is chosen and never enters a gate (arXiv 2412.19437, eq. 16).
        knobs: gating, top_k, groups and gate options; `config.check` has accepted them for E experts.

    Raises:
        SettingsError: a logit or a bias is not finite, so no order of experts is meaningful.
    """
    _refuse_not_finite(logits_TE, bias_E)
    scores_TE = affinity(logits_TE, knobs.gating)
    selection_TE = limit_to_groups(scores_TE.detach() + bias_E, knobs.num_groups, knobs.groups_kept, knobs.group_score)
    chosen_TK = selection_TE.topk(knobs.top_k, dim=-1).indices
    gates_TK = gate(scores_TE.gather(-1, chosen_TK), knobs.norm_topk, knobs.route_scale)
    load_E = torch.bincount(chosen_TK.flatten(), minlength=logits_TE.shape[-1])
    return Routing(scores_TE, chosen_TK, gates_TK, load_E)


def affinity(logits_TE: Tensor, gating: str) -> Tensor:
    """s: `softmax` over all experts (arXiv 2405.04434) or `sigmoid` of each (arXiv 2412.19437, eq. 15)."""
    logits_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
    return logits_TE.softmax(dim=-1) if gating == "softmax" else logits_TE.sigmoid()


def limit_to_groups(selection_TE: Tensor, num_groups: int, groups_kept: int, group_score: str) -> Tensor:
    """Mask all experts outside each token's best groups (node-limited routing, arXiv 2412.19437, section 2.1.2).

    The mask is -inf, not 0: selection scores with a negative bias would lose to a masked 0.
    """
    if groups_kept >= num_groups:
        return selection_TE
    T, E = selection_TE.shape
    grouped_TGe = selection_TE.view(T, num_groups, E // num_groups)
    best = min(2 if group_score == "top2" else 1, E // num_groups)
    group_scores_TG = grouped_TGe.topk(best, dim=-1).values.sum(-1)
    kept_TM = group_scores_TG.topk(groups_kept, dim=-1).indices
    outside_TG = torch.ones_like(group_scores_TG, dtype=torch.bool).scatter_(1, kept_TM, False)
    return grouped_TGe.masked_fill(outside_TG[:, :, None], float("-inf")).view(T, E)


def gate(chosen_scores_TK: Tensor, norm_topk: bool, route_scale: float) -> Tensor:
    """Weights of the chosen experts: their affinities, divided by their sum if `norm_topk`, times `route_scale`.

    With K = 1 and `norm_topk` the gate is always 1 and the router learns nothing through it.
    """
    if norm_topk:
        chosen_scores_TK = chosen_scores_TK / (chosen_scores_TK.sum(-1, keepdim=True) + 1e-20)
    return chosen_scores_TK * route_scale


def _refuse_not_finite(logits_TE: Tensor, bias_E: Tensor) -> None:
    for name, values in (("logits", logits_TE), ("bias", bias_E)):
        if not values.isfinite().all():
            raise SettingsError(
                f"The router's {name} hold NaN or infinity, so experts cannot be ranked. Try a lower learning_rate."
            )
