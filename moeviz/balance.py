"""What keeps experts equally busy? A bias that steers the choice, or losses that steer the router.

Bias rules run once per optimizer step, on the load of the whole training batch. Losses are added to the task loss:
each per layer, then averaged over layers; any of them may be on at the same time. Shapes: T tokens in S sequences of N,
E experts, K experts per token, D devices of E/D experts each, L layers. The axis of runs that are trained
together stands in front: a loss has a value for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from moeviz.config import LOSS_WEIGHTS, Knobs
from moeviz.routing import Routing, best_first, tally

# --- the bias --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BiasState:
    """The selection bias of all layers, and what its rule remembers."""

    rule: str  # the rule that the bias belongs to
    bias_LE: Tensor  # float32, without gradient
    momentum_LE: Tensor  # of the `momentum` rule; 0 under any other


def start(num_layers: int, num_experts: int, rule: str, device: str = "cpu") -> BiasState:
    """A bias that changes no choice: 0, or 1 under the multiplicative rule."""
    zeros_LE = torch.zeros(num_layers, num_experts, device=device)
    return BiasState(rule, zeros_LE + _neutral(rule), zeros_LE)


def under(state: BiasState, rule: str) -> BiasState:
    """The bias that another rule goes on from.

    Additive rules take over each other's b. From or to the multiplicative rule, and under `none`, b starts at the
    rule's neutral value: a summand is no factor.
    """
    if rule == state.rule:
        return state
    fresh = start(*state.bias_LE.shape, rule, state.bias_LE.device)
    keeps = not {"none", "multiplicative"} & {rule, state.rule}
    return replace(fresh, bias_LE=state.bias_LE) if keeps else fresh


def update(state: BiasState, routings: list[Routing], knobs: Knobs, step: int) -> BiasState:
    """The bias after training step number `step`, counted from 1.

    It rests after `freeze_after` steps (DeepSeek-V3's schedule, arXiv 2412.19437, section 4.2), at speed 0, and where
    no bias acts: with expert choice and hash routing.
    """
    state = under(state, knobs.bias_rule)
    return BIAS_RULES[knobs.bias_rule](state, routings, knobs) if moves(knobs, step) else state


def moves(knobs: Knobs, step: int) -> bool:
    """Whether the bias moves in this step at all."""
    frozen = 0 < knobs.freeze_after < step
    speed = knobs.damping if knobs.bias_rule == "quantile" else knobs.u
    return not frozen and speed != 0 and knobs.router == "top_k"


def no_rule(bias_LE: Tensor, load_LE: Tensor, u: float) -> Tensor:
    """b = 0: selection sees the affinities alone."""
    return torch.zeros_like(bias_LE)


def sign_rule(bias_LE: Tensor, load_LE: Tensor, u: float) -> Tensor:
    """b += u * sign(mean load - load), with sign(0) = 0 (arXiv 2408.15664, algorithm 1; DeepSeek-V3's gamma is u).

    Under the multiplicative rule the same step moves a factor (arXiv 2408.15664, eq. 5).
    """
    return bias_LE + u * torch.sign(_shortfall(load_LE))


def proportional_rule(bias_LE: Tensor, load_LE: Tensor, u: float) -> Tensor:
    """b += u * (mean load - load) / mean load (arXiv 2408.15664, section 4.3). It keeps the sum of b.

    The paper leaves the unit open. Raw counts would make u depend on the batch size; ours are relative to the mean.
    """
    return bias_LE + u * _relative_shortfall(load_LE)


def sign_centred_rule(bias_LE: Tensor, load_LE: Tensor, u: float) -> Tensor:
    """b += u * (d - mean d) with d = sign(mean load - load) (torchtitan, Moonlight). It keeps the sum of b."""
    direction_LE = torch.sign(_shortfall(load_LE)).to(bias_LE.dtype)
    return bias_LE + u * (direction_LE - direction_LE.mean(-1, keepdim=True))


def rms_rule(bias_LE: Tensor, load_LE: Tensor, u: float) -> Tensor:
    """b += u * (mean load - load) / RMS(mean load - load) (Su, kexue.fm 10757). It keeps the sum of b.

    As large as a sign step on the whole, without its dither near the mean; at perfect balance nothing moves.
    """
    shortfall_LE = _relative_shortfall(load_LE)
    rms_L1 = shortfall_LE.square().mean(-1, keepdim=True).sqrt()
    return bias_LE + u * shortfall_LE / torch.where(rms_L1 > 0, rms_L1, 1)


MOMENTUM, SQUASH = 0.5, 2.0  # beta and kappa of SMEBU; its lambda is our u


def momentum_rule(bias_LE: Tensor, momentum_LE: Tensor, load_LE: Tensor, u: float) -> tuple[Tensor, Tensor]:
    """v = (mean load - load) / mean load; d = u tanh(2 v), less its mean; m = m/2 + d/2; b += m (arXiv 2602.17004)."""
    step_LE = u * torch.tanh(SQUASH * _relative_shortfall(load_LE))
    step_LE = step_LE - step_LE.mean(-1, keepdim=True)
    momentum_LE = MOMENTUM * momentum_LE + (1 - MOMENTUM) * step_LE
    return bias_LE + momentum_LE, momentum_LE


def quantile_rule(bias_LE: Tensor, scores_LTE: Tensor, top_k: int, damping: float) -> Tensor:
    """A share `damping` of the way to the bias that balances these very scores (Su, kexue.fm 11619).

    A token takes an expert whose s + b exceeds its threshold a, the (K+1)-th largest. The wanted bias puts exactly
    T K / E tokens above: it is minus the (T K / E + 1)-th largest of s - a over tokens, centred. Groups are ignored.
    """
    T, E = scores_LTE.shape[-2:]
    if T == 0 or top_k >= E:
        return bias_LE
    a_LT1 = (scores_LTE + bias_LE.unsqueeze(-2)).topk(top_k + 1, dim=-1).values[..., -1:]
    wanted_LE = -(scores_LTE - a_LT1).topk(T * top_k // E + 1, dim=-2).values[..., -1, :]
    wanted_LE = wanted_LE - wanted_LE.mean(-1, keepdim=True)
    return bias_LE + damping * (wanted_LE - bias_LE)


def _neutral(rule: str) -> float:
    return 1.0 if rule == "multiplicative" else 0.0


def _shortfall(load_LE: Tensor) -> Tensor:
    """E times (mean - load), in whole numbers: a rounded mean would move experts that are exactly at it."""
    return load_LE.sum(-1, keepdim=True) - load_LE.shape[-1] * load_LE


def _relative_shortfall(load_LE: Tensor) -> Tensor:
    """(mean - load) / mean, 0 without any load."""
    return _shortfall(load_LE) / load_LE.sum(-1, keepdim=True).clamp(min=1)


def _by_load(
    rule: Callable[[Tensor, Tensor, float], Tensor], state: BiasState, routings: list[Routing], knobs: Knobs
) -> BiasState:
    """A step of a rule that needs no more than the bias, the load and u."""
    return replace(state, bias_LE=rule(state.bias_LE, _loads(routings), knobs.u))


def _momentum(state: BiasState, routings: list[Routing], knobs: Knobs) -> BiasState:
    bias_LE, momentum_LE = momentum_rule(state.bias_LE, state.momentum_LE, _loads(routings), knobs.u)
    return replace(state, bias_LE=bias_LE, momentum_LE=momentum_LE)


def _quantile(state: BiasState, routings: list[Routing], knobs: Knobs) -> BiasState:
    scores_LTE = torch.stack([routing.scores_TE.detach() for routing in routings], dim=-3)
    return replace(state, bias_LE=quantile_rule(state.bias_LE, scores_LTE, knobs.top_k, knobs.damping))


def _loads(routings: list[Routing]) -> Tensor:
    return torch.stack([routing.load_E for routing in routings], dim=-2)


Rule = Callable[[BiasState, list[Routing], Knobs], BiasState]
BIAS_RULES: dict[str, Rule] = {
    "none": partial(_by_load, no_rule),
    "sign": partial(_by_load, sign_rule),
    "proportional": partial(_by_load, proportional_rule),
    "sign_centred": partial(_by_load, sign_centred_rule),
    "rms": partial(_by_load, rms_rule),
    "multiplicative": partial(_by_load, sign_rule),
    "momentum": _momentum,
    "quantile": _quantile,
}

# --- losses ----------------------------------------------------------------------------------------------------------


def added_loss(routings: list[Routing], knobs: Knobs, num_sequences: int) -> Tensor:
    """The sum of all losses that are on, each times its weight and averaged over layers; 0 when none is."""
    total = routings[0].scores_TE.new_zeros(routings[0].scores_TE.shape[:-2])
    for name in knobs.losses:
        per_layer = [LOSSES[name](routing, num_sequences, knobs) for routing in routings]
        total = total + getattr(knobs, LOSS_WEIGHTS[name]) * torch.stack(per_layer).mean(0)
    return total


def batch_loss(routing: Routing, num_sequences: int, knobs: Knobs) -> Tensor:
    """sum_i f_i P_i over all tokens of the batch (arXiv 2408.15664, eq. 2; batch-wise as in arXiv 2412.19437, 4.5.3).

    f_i = E/(K T) * count_i carries no gradient; P_i = mean over tokens of s_i / sum_j s_j. It is 1 when P is uniform,
    whatever the load.
    """
    return (_relative(routing.load_E, routing) * _mean_share(routing.scores_TE)).sum(-1)


def sequence_loss(routing: Routing, num_sequences: int, knobs: Knobs) -> Tensor:
    """The same within each sequence, then the mean over sequences (arXiv 2412.19437, eq. 17-20).

    f counts the plain top-K of the unbiased affinities, without groups (eq. 18); with expert choice, what was chosen.
    """
    scores_SNE = routing.scores_TE.unflatten(-2, (num_sequences, -1))
    if routing.valid_TK is None:
        counted_TK = best_first(routing.scores_TE.detach(), routing.chosen_TK.shape[-1])
    else:
        counted_TK = routing.chosen_TK
    f_SE = _relative(_count(counted_TK, routing.valid_TK, routing, num_sequences), routing)
    return (f_SE * _mean_share(scores_SNE)).sum(-1).mean(-1)


def switch_loss(routing: Routing, num_sequences: int, knobs: Knobs) -> Tensor:
    """E sum_i f_i P_i, f_i = share of the tokens whose first choice is i (arXiv 2101.03961, eq. 4-6).

    Without K, since only one choice is counted.
    """
    first_E = _first_choices(routing, 1).squeeze(-2)
    return (_relative(first_E, routing) * _mean_share(routing.scores_TE)).sum(-1)


def gshard_loss(routing: Routing, num_sequences: int, knobs: Knobs) -> Tensor:
    """(1/E) sum_i (c_i / S) m_i in each group of S tokens, c_i counting first choices (arXiv 2006.16668, algorithm 1).

    The paper's groups of tokens, dispatched independently, are our sequences; the mean over them is taken. It is
    E^2 times the paper's value, so that uniform affinities cost 1 here as in the other losses.
    """
    scores_SNE = routing.scores_TE.unflatten(-2, (num_sequences, -1))
    f_SE = _relative(_first_choices(routing, num_sequences), routing)
    return (f_SE * _mean_share(scores_SNE)).sum(-1).mean(-1)


def device_loss(routing: Routing, num_sequences: int, knobs: Knobs) -> Tensor:
    """sum_d f'_d P'_d over devices, f' = mean of the device's f, P' = sum of its P (arXiv 2405.04434, eq. 26-28).

    The paper's T is one sequence; ours is the batch, where a device's work is decided. Uniform P costs 1: each P' is
    then 1/D and the D means of f average to 1.
    """
    f_De = _relative(routing.load_E, routing).unflatten(-1, (knobs.num_devices, -1))
    P_De = _mean_share(routing.scores_TE).unflatten(-1, (knobs.num_devices, -1))
    return (f_De.mean(-1) * P_De.sum(-1)).sum(-1)


def communication_loss(routing: Routing, num_sequences: int, knobs: Knobs) -> Tensor:
    """sum_d f''_d P'_d, f'' = D/(M T) * tokens that reach device d, each once (arXiv 2405.04434, eq. 29-31).

    M is the most devices that a token can reach: `groups_kept` where groups are the devices (device-limited routing),
    else all D, and in any case no more than its K experts. When every token reaches M devices and every device the
    same number of tokens, T M / D, each f'' is 1 and the loss is the sum of P', 1. Tokens that reach fewer cost less.
    """
    T, E = routing.scores_TE.shape[-2:]
    D = knobs.num_devices
    reached_TD = tally(routing.chosen_TK // (E // D), D, routing.valid_TK).clamp_(max=1).to(routing.scores_TE.dtype)
    limited = knobs.router == "top_k" and knobs.num_groups == D
    M = min(knobs.top_k, knobs.groups_kept if limited else D)
    f_D = reached_TD.sum(-2) * (D / (M * max(T, 1)))
    return (f_D * _mean_share(routing.scores_TE).unflatten(-1, (D, -1)).sum(-1)).sum(-1)


def z_loss(routing: Routing, num_sequences: int, knobs: Knobs) -> Tensor:
    """mean over tokens of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return _mean(routing.logits_TE.logsumexp(-1).square(), -1)


def _relative(count_E: Tensor, routing: Routing) -> Tensor:
    """f: counts relative to their mean over experts, E/(K T) * count where K T pairs are counted. It sums to E."""
    count_E = count_E.to(routing.scores_TE.dtype)
    return count_E * (count_E.shape[-1] / count_E.sum(-1, keepdim=True).clamp(min=1))


def _mean_share(scores: Tensor) -> Tensor:
    """P: the mean over tokens of s_i / sum_j s_j."""
    return _mean(scores / (scores.sum(-1, keepdim=True) + 1e-20), -2)


def _mean(values: Tensor, dim: int) -> Tensor:
    """Over tokens; of none of them 0, where a plain mean is NaN."""
    return values.sum(dim) / max(values.shape[dim], 1)


def _first_choices(routing: Routing, parts: int) -> Tensor:
    """How often each expert is a token's first choice, in each of so many equal parts of the batch."""
    valid_T1 = None if routing.valid_TK is None else routing.valid_TK[..., :1]
    return _count(routing.chosen_TK[..., :1], valid_T1, routing, parts)


def _count(expert_TK: Tensor, valid_TK: Tensor | None, routing: Routing, parts: int) -> Tensor:
    """How often each expert occurs in each of so many equal parts of the batch, shape (parts, E)."""
    valid_SP = None if valid_TK is None else _parts(valid_TK, parts)
    return tally(_parts(expert_TK, parts), routing.load_E.shape[-1], valid_SP)


def _parts(column_TK: Tensor, parts: int) -> Tensor:
    return column_TK.flatten(-2).unflatten(-1, (parts, -1))


Loss = Callable[[Routing, int, Knobs], Tensor]
LOSSES: dict[str, Loss] = {
    "batch": batch_loss,
    "sequence": sequence_loss,
    "switch": switch_loss,
    "gshard": gshard_loss,
    "device": device_loss,
    "communication": communication_loss,
    "z": z_loss,
}
