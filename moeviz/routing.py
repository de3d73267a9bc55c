"""Which experts does each token visit, and how much does each count?

Score, choose, gate. By default each token chooses (limit to groups, then the K best); each expert choosing its tokens
and a fixed hash are other routers behind the same record. Shapes: T tokens, E experts, K experts per token, G groups of
E/G experts, M groups kept per token; the axis of runs that are trained together stands in front. The contract follows
DeepSeek-V3 (arXiv 2412.19437, eq. 12-16); where implementations differ, each function says which way it goes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from moeviz.config import Knobs, SettingsError

TOKEN_IDS = 256  # different tokens that a hash router can tell apart


@dataclass(frozen=True, slots=True)
class Routing:
    """One layer's decision for one batch.

    With expert choice a token has any number of experts: K is then what the busiest token needs, and the rest is
    padding with gate 0, which `valid_TK` tells apart. Padding repeats the token's best expert.
    """

    logits_TE: Tensor  # in float32 or better
    scores_TE: Tensor  # affinity s, without the bias
    chosen_TK: Tensor  # expert ids, best selection score first
    gates_TK: Tensor  # weight of each chosen expert, from s alone
    load_E: Tensor  # (token, expert) pairs per expert, before drops
    valid_TK: Tensor | None = None  # which pairs are real; None: all of them

    def twin(self, place: int) -> Routing:
        """The part of one of several runs that were routed together."""
        valid_TK = None if self.valid_TK is None else self.valid_TK[place]
        columns = (self.logits_TE, self.scores_TE, self.chosen_TK, self.gates_TK, self.load_E)
        return Routing(*(column[place] for column in columns), valid_TK)


def route(logits_TE: Tensor, bias_E: Tensor, knobs: Knobs, token_id_T: Tensor | None = None) -> Routing:
    """Score, choose, gate.

    Args:
        logits_TE: tokens times expert centroids, any float type; computed on in float32 or better.
        bias_E: selection bias. It decides who is chosen and never enters a gate (arXiv 2412.19437, eq. 16). It is a
            factor, with 1 as its neutral value, under `bias_rule="multiplicative"`.
        knobs: gating, router, top_k, groups and gate options; `config.check` has accepted them for E experts.
        token_id_T: numbers from 0 to 255, for the hash router.

    Raises:
        SettingsError: a logit or a bias is not finite, so no order of experts is meaningful.
        ValueError: the hash router has no token ids.
    """
    _refuse_not_finite(logits_TE, bias_E)
    return decide(logits_TE, bias_E, knobs, token_id_T)


def decide(logits_TE: Tensor, bias_E: Tensor, knobs: Knobs, token_id_T: Tensor | None = None) -> Routing:
    """`route` without its look at the values, which would make an accelerator wait: training looks once per step."""
    logits_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
    scores_TE = AFFINITIES[knobs.gating](logits_TE)
    chosen_TK, valid_TK = ROUTERS[knobs.router](scores_TE.detach(), bias_E, knobs, token_id_T)
    chosen_scores_TK = scores_TE.gather(-1, chosen_TK)
    if valid_TK is not None:
        chosen_scores_TK = chosen_scores_TK * valid_TK
    gates_TK = gate(chosen_scores_TK, knobs.norm_topk, knobs.route_scale)
    load_E = tally(chosen_TK.flatten(-2), logits_TE.shape[-1], None if valid_TK is None else valid_TK.flatten(-2))
    return Routing(logits_TE, scores_TE, chosen_TK, gates_TK, load_E, valid_TK)


def affinity(logits_TE: Tensor, gating: str) -> Tensor:
    """s, in float32 or better: `softmax`, `sigmoid` or `sqrtsoftplus` of the logits."""
    return AFFINITIES[gating](logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32)))


def softmax(logits_TE: Tensor) -> Tensor:
    """exp(x_i) / sum_j exp(x_j) over all experts (arXiv 2405.04434)."""
    return logits_TE.softmax(dim=-1)


def sigmoid(logits_TE: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) of each (arXiv 2412.19437, eq. 15)."""
    return logits_TE.sigmoid()


def sqrtsoftplus(logits_TE: Tensor) -> Tensor:
    """sqrt(log(1 + exp(x))) of each (DeepSeek-V4, arXiv 2606.19348).

    Under -30 it is exp(x / 2) to the last bit, and written so: the root of an underflow has no finite gradient.
    """
    low_TE = (logits_TE.clamp(max=-30) / 2).exp()
    return torch.where(logits_TE < -30, low_TE, F.softplus(logits_TE.clamp(min=-30), threshold=40).sqrt())


def token_choice(
    scores_TE: Tensor, bias_E: Tensor, knobs: Knobs, token_id_T: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Each token takes its K best experts within its best groups (arXiv 2412.19437, eq. 16)."""
    selection_TE = selection_score(scores_TE, bias_E, knobs.bias_rule)
    selection_TE = limit_to_groups(selection_TE, knobs.num_groups, knobs.groups_kept, knobs.group_score)
    return best_first(selection_TE, knobs.top_k), None


def selection_score(scores_TE: Tensor, bias_E: Tensor, bias_rule: str) -> Tensor:
    """s + b (arXiv 2408.15664, eq. 3), or s * b under the multiplicative rule (eq. 5)."""
    bias_1E = bias_E.unsqueeze(-2)
    return scores_TE * bias_1E if bias_rule == "multiplicative" else scores_TE + bias_1E


def limit_to_groups(selection_TE: Tensor, num_groups: int, groups_kept: int, group_score: str) -> Tensor:
    """Mask all experts outside each token's best groups (node-limited routing, arXiv 2412.19437, section 2.1.2).

    The mask is -inf, not 0: selection scores with a negative bias would lose to a masked 0.
    """
    if groups_kept >= num_groups:
        return selection_TE
    grouped_TGe = selection_TE.unflatten(-1, (num_groups, -1))
    best = min(2 if group_score == "top2" else 1, grouped_TGe.shape[-1])
    group_scores_TG = grouped_TGe.topk(best, dim=-1).values.sum(-1)
    kept_TM = best_first(group_scores_TG, groups_kept)
    outside_TG = torch.ones_like(group_scores_TG, dtype=torch.bool).scatter_(-1, kept_TM, False)
    return grouped_TGe.masked_fill(outside_TG.unsqueeze(-1), float("-inf")).flatten(-2)


def best_first(values_TE: Tensor, count: int) -> Tensor:
    """Places of the `count` largest values of each row, the largest first: what `torch.topk` says, sooner.

    On a processor the maximum of a row is found many times faster than its place. So each float32 is widened to
    float64 and carries its place in the bits that this frees: the order of different values stays as it is, and the
    maximum tells its place. Of equal values the earlier place comes first, of equal negative ones the later.
    """
    experts = values_TE.shape[-1]
    if values_TE.device.type != "cpu" or values_TE.dtype != torch.float32 or count > min(16, experts // 2):
        return values_TE.topk(count, dim=-1).indices
    keyed_TE = values_TE.double().clamp_(min=-1e300)  # -inf has no bits to spare
    mask, bits_E = _place_bits(experts)
    keyed_TE.view(torch.int64).bitwise_or_(bits_E)
    places = [experts - 1 - (keyed_TE.amax(-1, keepdim=True).view(torch.int64) & mask)]
    while len(places) < count:
        keyed_TE.scatter_(-1, places[-1], float("-inf"))
        places.append(experts - 1 - (keyed_TE.amax(-1, keepdim=True).view(torch.int64) & mask))
    return torch.cat(places, dim=-1)


@cache
def _place_bits(experts: int) -> tuple[int, Tensor]:
    """A mask as wide as the largest place, and for each place its distance from the last."""
    return (1 << (experts - 1).bit_length()) - 1, experts - 1 - torch.arange(experts)


def tally(expert_P: Tensor, num_experts: int, valid_P: Tensor | None = None) -> Tensor:
    """How often each expert occurs along the last axis, padding left out. Unlike `torch.bincount` it never makes an
    accelerator wait."""
    ones_P = torch.ones_like(expert_P) if valid_P is None else valid_P.to(expert_P.dtype)
    return expert_P.new_zeros(*expert_P.shape[:-1], num_experts).scatter_add_(-1, expert_P, ones_P)


def expert_choice(
    scores_TE: Tensor, bias_E: Tensor, knobs: Knobs, token_id_T: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Each expert takes its ceil(T K / E) best tokens of the batch (arXiv 2202.09368).

    The load is exact, but a token's route depends on the tokens after it: this router sees the future. A bias would be
    the same for all tokens that an expert compares, so it changes nothing and is left out; groups do not act.
    """
    *runs, T, E = scores_TE.shape
    if T == 0:
        return torch.zeros(*runs, 0, knobs.top_k, dtype=torch.long, device=scores_TE.device), None
    best_cE = scores_TE.topk(-(-T * knobs.top_k // E), dim=-2).indices
    taken_TE = torch.zeros_like(scores_TE, dtype=torch.bool).scatter_(-2, best_cE, True)
    columns = int(taken_TE.sum(-1).max())
    values_TK, chosen_TK = scores_TE.masked_fill(~taken_TE, float("-inf")).topk(columns, dim=-1)
    valid_TK = values_TK > float("-inf")
    return torch.where(valid_TK, chosen_TK, chosen_TK[..., :1]), valid_TK


def hashed(scores_TE: Tensor, bias_E: Tensor, knobs: Knobs, token_id_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The K experts of a token's id in a fixed table (arXiv 2106.04426): even only as far as ids are equally frequent.

    Neither bias nor groups act. The gates are still the router's affinities, as in DeepSeek-V4's first layers.
    """
    if token_id_T is None:
        raise ValueError("router=hash needs token_id_T, a number from 0 to 255 for every token.")
    table_IE = hash_table(scores_TE.shape[-1]).to(scores_TE.device)
    chosen_TK = table_IE[token_id_T, : knobs.top_k]
    return chosen_TK.expand(*scores_TE.shape[:-2], *chosen_TK.shape), None


@cache
def hash_table(num_experts: int) -> Tensor:
    """All experts in an order of its own for each of the 256 token ids: the same on every machine, for every seed."""

    def place(token_id: int, expert: int) -> bytes:
        return hashlib.sha256(b"token %d expert %d" % (token_id, expert)).digest()

    return torch.tensor(
        [sorted(range(num_experts), key=lambda expert: place(token_id, expert)) for token_id in range(TOKEN_IDS)]
    )


def gate(chosen_scores_TK: Tensor, norm_topk: bool, route_scale: float) -> Tensor:
    """Weights of the chosen experts: their affinities, divided by their sum if `norm_topk`, times `route_scale`.

    With K = 1 and `norm_topk` the gate is always 1 and the router learns nothing through it.
    """
    if norm_topk:
        chosen_scores_TK = chosen_scores_TK / (chosen_scores_TK.sum(-1, keepdim=True) + 1e-20)
    return chosen_scores_TK * route_scale if route_scale != 1 else chosen_scores_TK


def _refuse_not_finite(logits_TE: Tensor, bias_E: Tensor) -> None:
    """Raises SettingsError where an order of experts would be meaningless."""
    for name, values in (("logits", logits_TE), ("bias", bias_E)):
        if not values.isfinite().all():
            raise SettingsError(
                f"The router's {name} hold NaN or infinity, so experts cannot be ranked. Try a lower learning_rate."
            )


Router = Callable[[Tensor, Tensor, Knobs, Tensor | None], tuple[Tensor, Tensor | None]]
AFFINITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "sqrtsoftplus": sqrtsoftplus,
}
ROUTERS: dict[str, Router] = {"top_k": token_choice, "expert_choice": expert_choice, "hash": hashed}
