"""Do we route as the models route that people run? The judge is transformers' own code, from tiny random configs.

Both sides get the same logits. Tokens are set aside as near ties when the gap in selection score between the last
chosen and the first rejected expert (or group) is under NEAR: there, `topk` may take either, and nobody says which.
Where their code differs from the contract on purpose or by history, a test at the end shows the difference, so that it
cannot change unnoticed; moeviz/forks.py tells people.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is built from sizes; nothing may be fetched

import pytest
import torch
from torch import Tensor

from moeviz.balance import added_loss, batch_loss
from moeviz.config import Knobs
from moeviz.routing import Routing, route
from tests.one_run import mix

T, E, D, H = 2048, 16, 24, 8
NEAR = 1e-6  # in selection score, about ten roundings of a float32 near 1
SET_ASIDE = 0.002  # of the tokens, at most: 4 of 2048. Seen: 1
SET_ASIDE_BF16 = 0.02  # bfloat16 logits have 8 bits, so exact ties are common. Seen: 25 of 2048
DTYPES = [torch.float32, torch.bfloat16]
EPS_BF16 = 2**-8  # half a step of a bfloat16, relative


@dataclass(frozen=True)
class Case:
    """One of their blocks, and the knobs that should do the same as its router."""

    block: Callable[[], Any]
    knobs: Knobs
    bias: tuple[float, float] = (0.0, 0.0)  # from the lowest to the highest expert's bias, shuffled
    gates_in_model_dtype: bool = False  # they round the gates to the model's dtype; ours stay in float32


def modeling(model: str) -> ModuleType:
    """Their code of a model. It is read when a test asks for it: all test processes collect this file, one runs it."""
    return importlib.import_module(f"transformers.models.{model}.modeling_{model}")


def block(model: str, name: str, config: str, **sizes) -> Callable[[], Any]:
    """Makes one of their blocks."""
    return lambda: getattr(modeling(model), name)(getattr(modeling(model), config)(**sizes))


def v3(**changes) -> Callable[[], Any]:
    sizes = {"hidden_size": D, "moe_intermediate_size": H, "n_routed_experts": E, "n_shared_experts": 1}
    choice = {"num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
    return block("deepseek_v3", "DeepseekV3MoE", "DeepseekV3Config", **(sizes | choice | changes))


def v2(**changes) -> Callable[[], Any]:
    sizes = {"hidden_size": D, "num_attention_heads": 2, "moe_intermediate_size": H, "n_routed_experts": E}
    choice = {"num_experts_per_tok": 3, "n_shared_experts": 2, "routed_scaling_factor": 16.0}
    return block("deepseek_v2", "DeepseekV2Moe", "DeepseekV2Config", **(sizes | choice | changes))


def mixtral(**changes) -> Callable[[], Any]:
    sizes = {"hidden_size": D, "intermediate_size": H, "num_local_experts": E}
    return block("mixtral", "MixtralSparseMoeBlock", "MixtralConfig", **(sizes | changes))


def olmoe(norm: bool) -> Callable[[], Any]:
    sizes = {"hidden_size": D, "intermediate_size": H, "num_experts": E, "num_experts_per_tok": 4}
    return block("olmoe", "OlmoeSparseMoeBlock", "OlmoeConfig", **sizes, norm_topk_prob=norm)


def qwen3(norm: bool) -> Callable[[], Any]:
    sizes = {"hidden_size": D, "moe_intermediate_size": H, "num_experts": E, "num_experts_per_tok": 4}
    return block("qwen3_moe", "Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig", **sizes, norm_topk_prob=norm)


V3 = Knobs(gating="sigmoid", top_k=4, num_groups=4, groups_kept=2, group_score="top2", route_scale=2.5)
V2 = Knobs(gating="softmax", top_k=3, norm_topk=False, route_scale=16.0, group_score="max")
BIAS = (-0.5, 0.5)
GROUPS = {"num_groups": 4, "groups_kept": 2}


def _softmax(top_k: int, norm: bool) -> Knobs:
    return Knobs(gating="softmax", top_k=top_k, norm_topk=norm)


CASES = {
    "deepseek-v3": Case(v3(), V3, bias=BIAS),
    "deepseek-v3 very negative bias": Case(v3(), V3, bias=(-3.0, -1.0)),
    "deepseek-v3 without bias": Case(v3(), V3),
    "deepseek-v3 not normalised": Case(v3(norm_topk_prob=False), replace(V3, norm_topk=False), bias=BIAS),
    "deepseek-v3 one group": Case(v3(n_group=1, topk_group=1), replace(V3, num_groups=1, groups_kept=1), bias=BIAS),
    "deepseek-v3 one choice": Case(v3(num_experts_per_tok=1), replace(V3, top_k=1), bias=BIAS),
    "deepseek-v2 greedy": Case(v2(topk_method="greedy"), V2),
    "deepseek-v2 group limited": Case(
        v2(topk_method="group_limited_greedy", n_group=4, topk_group=2), replace(V2, **GROUPS)
    ),
    "mixtral": Case(mixtral(), _softmax(2, norm=True)),
    "mixtral one choice": Case(mixtral(num_experts_per_tok=1), _softmax(1, norm=True)),
    "olmoe": Case(olmoe(False), _softmax(4, norm=False), gates_in_model_dtype=True),
    "olmoe normalised": Case(olmoe(True), _softmax(4, norm=True), gates_in_model_dtype=True),
    "qwen3": Case(qwen3(True), _softmax(4, norm=True), gates_in_model_dtype=True),
    "qwen3 not normalised": Case(qwen3(False), _softmax(4, norm=False), gates_in_model_dtype=True),
}


@dataclass(frozen=True)
class Theirs:
    """What their router said for T random tokens, and what it was made of."""

    block: Any
    x_Td: Tensor
    logits_TE: Tensor
    gates_TK: Tensor
    chosen_TK: Tensor
    bias_E: Tensor


def ask(case: Case, dtype: torch.dtype) -> Theirs:
    """Their block with random weights, asked in `dtype`."""
    draw = torch.Generator().manual_seed(0)
    block = case.block()
    for weight in block.parameters():
        weight.data = torch.randn(weight.shape, generator=draw) * D**-0.5
    block = block.to(dtype)
    bias_E = torch.zeros(E)
    if hasattr(block.gate, "e_score_correction_bias"):
        bias_E = torch.linspace(*case.bias, E)[torch.randperm(E, generator=draw)]
        block.gate.e_score_correction_bias = bias_E  # float32, as `_keep_in_fp32_modules_strict` has it
    x_Td = (2 * torch.randn(T, D, generator=draw)).to(dtype)
    with torch.no_grad():
        return Theirs(block, x_Td, *block.gate(x_Td), bias_E)


def near_ties(routing: Routing, bias_E: Tensor, knobs: Knobs) -> Tensor:
    """Tokens whose last place, among experts or among groups, was won by less than NEAR. In plain loops."""
    near = []
    for scores_E in (routing.scores_TE.double() + bias_E).tolist():
        size = E // knobs.num_groups
        groups = [scores_E[start : start + size] for start in range(0, E, size)]
        best = 2 if knobs.group_score == "top2" else 1
        ranked = sorted(range(len(groups)), key=lambda g: -sum(sorted(groups[g])[-best:]))
        sums = [sum(sorted(groups[g])[-best:]) for g in ranked]
        open_scores = sorted((s for g in ranked[: knobs.groups_kept] for s in groups[g]), reverse=True)
        places = [(open_scores, knobs.top_k), (sums, knobs.groups_kept)]
        near.append(any(len(row) > k and row[k - 1] - row[k] < NEAR for row, k in places))
    return torch.tensor(near)


def dense(chosen_TK: Tensor, gates_TK: Tensor) -> Tensor:
    """Gates laid out by expert, so that the order of choices does not matter; -1 where an expert was not chosen."""
    return torch.full((len(chosen_TK), E), -1.0).scatter(1, chosen_TK, gates_TK.float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_same_logits_choose_the_same_experts_with_the_same_gates(name, dtype):
    case, theirs = CASES[name], ask(CASES[name], dtype)
    ours = route(theirs.logits_TE, theirs.bias_E, case.knobs)
    near = near_ties(ours, theirs.bias_E, case.knobs)
    # DeepSeek's routers make float32 logits from bfloat16 tokens; the others' logits are bfloat16 themselves.
    assert near.float().mean() <= (SET_ASIDE if theirs.logits_TE.dtype == torch.float32 else SET_ASIDE_BF16)
    assert torch.equal(ours.chosen_TK.sort(-1).values[~near], theirs.chosen_TK.sort(-1).values[~near])
    rounded = theirs.gates_TK.dtype == torch.bfloat16
    assert rounded == (case.gates_in_model_dtype and dtype == torch.bfloat16)
    assert ours.gates_TK.dtype == torch.float32
    expected, found = dense(theirs.chosen_TK, theirs.gates_TK)[~near], dense(ours.chosen_TK, ours.gates_TK)[~near]
    torch.testing.assert_close(found, expected, rtol=EPS_BF16 if rounded else 1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_block_is_shared_experts_plus_gates_times_experts(name):
    """Their whole block against our grouped product on our routing, from our own product of token and centroid."""
    case, theirs = CASES[name], ask(CASES[name], torch.float32)
    block, x_Td = theirs.block, theirs.x_Td
    routing = route(x_Td @ block.gate.weight.t(), theirs.bias_E, case.knobs)
    w_in, w_out = (w.transpose(1, 2).contiguous() for w in (block.experts.gate_up_proj, block.experts.down_proj))
    with torch.no_grad():
        ours = mix(x_Td, routing.chosen_TK, routing.gates_TK, w_in, w_out)
        if hasattr(block, "shared_experts"):
            ours = ours + block.shared_experts(x_Td)
        expected = block(x_Td[None])[0]
    near = near_ties(routing, theirs.bias_E, case.knobs)
    assert near.float().mean() <= SET_ASIDE
    torch.testing.assert_close(ours[~near], expected[~near], rtol=1e-4, atol=1e-4)


def test_the_bias_of_the_comparison_changes_the_choice_and_makes_negative_scores_win():
    for name in ("deepseek-v3", "deepseek-v3 very negative bias"):
        case = CASES[name]
        theirs = ask(case, torch.float32)
        without = route(theirs.logits_TE, torch.zeros(E), case.knobs)
        changed = (without.chosen_TK.sort(-1).values != theirs.chosen_TK.sort(-1).values).any(-1)
        assert changed.float().mean() > 0.5
    chosen_TK = (theirs.logits_TE.sigmoid() + theirs.bias_E).gather(1, theirs.chosen_TK)
    assert (chosen_TK < 0).float().mean() > 0.5  # a mask of 0 would beat them


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_their_balance_loss_is_k_times_ours_on_one_layer(top_k):
    """Theirs lacks the 1/K of f, so balance costs K and not 1."""
    logits_TE = torch.randn(T, E, generator=torch.Generator().manual_seed(top_k)) * 2
    routing = route(logits_TE, torch.zeros(E), _softmax(top_k, norm=True))
    theirs = modeling("mixtral").load_balancing_loss_func((logits_TE,), E, top_k)
    torch.testing.assert_close(theirs, top_k * batch_loss(routing, 1, Knobs()), rtol=1e-5, atol=0)


# Where they differ. Each test shows the difference, so that a new version of theirs cannot take it away in silence.


def test_their_balance_loss_pools_layers_and_ours_averages_them():
    """Two collapsed layers, on different experts, look perfectly balanced when pooled."""
    to_first, to_second = torch.tensor([9.0, -9.0]).expand(64, 2), torch.tensor([-9.0, 9.0]).expand(64, 2)
    layers = [to_first, to_second]
    routings = [route(logits, torch.zeros(2), _softmax(1, norm=True)) for logits in layers]
    ours = added_loss(routings, Knobs(alpha=1.0), 1)
    theirs = modeling("mixtral").load_balancing_loss_func(tuple(layers), 2, top_k=1)
    assert float(ours) == pytest.approx(2, abs=1e-4)  # as bad as two experts can be
    assert float(theirs) == pytest.approx(1, abs=1e-4)  # as good as it gets


def test_on_random_layers_their_pooled_loss_is_the_product_of_means_and_ours_the_mean_of_products():
    draw = torch.Generator().manual_seed(0)
    layers = [torch.randn(256, E, generator=draw) + 2 * torch.randn(E, generator=draw) for _ in range(3)]
    routings = [route(logits, torch.zeros(E), _softmax(2, norm=True)) for logits in layers]
    f_LE = torch.stack([routing.load_E * E / (2 * 256) for routing in routings])
    P_LE = torch.stack([routing.scores_TE.mean(0) for routing in routings])
    theirs = modeling("mixtral").load_balancing_loss_func(tuple(layers), E, 2)
    ours = added_loss(routings, Knobs(alpha=1.0), 1)
    torch.testing.assert_close(theirs, 2 * (f_LE.mean(0) * P_LE.mean(0)).sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(ours, (f_LE * P_LE).sum(-1).mean(), rtol=1e-5, atol=0)
    assert ours > 1.1 * theirs / 2


def test_their_balance_loss_on_bfloat16_logits_rounds_the_probabilities_and_ours_does_not():
    draw = torch.Generator().manual_seed(0)
    logits_TE = (torch.randn(T, E, generator=draw) + 2 * torch.randn(E, generator=draw)).bfloat16()
    ours = 2 * batch_loss(route(logits_TE, torch.zeros(E), _softmax(2, norm=True)), 1, Knobs())
    exact = modeling("mixtral").load_balancing_loss_func((logits_TE.float(),), E, 2)
    rounded = modeling("mixtral").load_balancing_loss_func((logits_TE,), E, 2)
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=0)
    assert 1e-5 < abs(rounded / exact - 1) < 1e-2


def test_deepseek_v2_masks_groups_with_0_and_can_leave_them_when_scores_underflow_and_ours_cannot():
    """Softmax scores are positive, so 0 works until a score underflows to 0 and ties with the mask.

    Every token has two experts, in two groups, that leave all other scores at exactly 0; K = 3 needs one of those.
    """
    case = CASES["deepseek-v2 group limited"]
    gate = case.block().gate
    gate.weight.data = 400 * torch.eye(E, D)
    pairs = torch.tensor([(i, j) for i in range(E) for j in range(E) if i // 4 != j // 4])
    x_Td = torch.zeros(len(pairs), D).scatter(1, pairs, torch.tensor([1.0, 0.99]).expand(len(pairs), 2))
    with torch.no_grad():
        logits_TE, _, their_chosen = gate(x_Td)
    ours = route(logits_TE, torch.zeros(E), case.knobs)
    left = [
        [bool((~torch.isin(row // 4, pair // 4)).any()) for row, pair in zip(chosen, pairs, strict=True)]
        for chosen in (their_chosen, ours.chosen_TK)
    ]
    assert any(left[0])
    assert not any(left[1])


def test_deepseek_v2_never_normalises_whatever_its_config_says():
    case = Case(v2(topk_method="greedy", norm_topk_prob=True), V2)
    theirs = ask(case, torch.float32)
    ours = route(theirs.logits_TE, torch.zeros(E), V2)
    torch.testing.assert_close(theirs.gates_TK.sum(-1), ours.gates_TK.sum(-1), rtol=1e-6, atol=1e-6)
    assert (theirs.gates_TK.sum(-1) < 15.9).any()


def test_deepseek_v3_needs_two_experts_per_group_and_ours_takes_the_one_there_is():
    case = Case(v3(n_group=E, topk_group=8), replace(V3, num_groups=E, groups_kept=8))
    with pytest.raises(RuntimeError, match="out of range"):
        ask(case, torch.float32)
    routing = route(torch.randn(5, E), torch.zeros(E), case.knobs)
    assert routing.chosen_TK.shape == (5, 4)


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen3"])
def test_bfloat16_logits_choose_other_experts_than_float32_logits_of_the_same_weights(name):
    """Mixtral, OLMoE and Qwen3 round the logits before the softmax; DeepSeek multiplies in float32, as we ask for."""
    case = CASES[name]
    theirs = ask(case, torch.bfloat16)
    exact = route(theirs.x_Td.float() @ theirs.block.gate.weight.float().t(), theirs.bias_E, case.knobs)
    other = (exact.chosen_TK.sort(-1).values != theirs.chosen_TK.sort(-1).values).any(-1).float().mean()
    assert 0.001 < other < 0.05


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2 group limited"])
def test_deepseeks_routers_multiply_bfloat16_tokens_in_float32(name):
    case = CASES[name]
    theirs = ask(case, torch.bfloat16)
    exact = route(theirs.x_Td.float() @ theirs.block.gate.weight.float().t(), theirs.bias_E, case.knobs)
    assert theirs.logits_TE.dtype == torch.float32
    near = near_ties(exact, theirs.bias_E, case.knobs)
    assert near.float().mean() <= SET_ASIDE
    assert torch.equal(exact.chosen_TK.sort(-1).values[~near], theirs.chosen_TK.sort(-1).values[~near])


@pytest.mark.parametrize("name", ["olmoe normalised", "qwen3"])
def test_rounded_gates_no_longer_sum_to_one_and_ours_do(name):
    theirs = ask(CASES[name], torch.bfloat16)
    ours = route(theirs.logits_TE, theirs.bias_E, CASES[name].knobs)
    assert (ours.gates_TK.sum(-1) - 1).abs().max() < 1e-6
    assert 1e-3 < (theirs.gates_TK.float().sum(-1) - 1).abs().max() < 2 * EPS_BF16


def test_affinities_that_underflow_give_finite_gates_on_both_sides():
    """1e-20 in the denominator: 0 / 1e-20 is 0, and 0 / 0 would be NaN."""
    case = CASES["deepseek-v3"]
    gate = case.block().gate
    gate.weight.data = torch.full((E, D), -50.0)
    with torch.no_grad():
        logits_TE, their_gates, _ = gate(torch.ones(3, D))
    assert (their_gates == 0).all()
    assert (route(logits_TE, torch.zeros(E), case.knobs).gates_TK == 0).all()
