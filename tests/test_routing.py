"""Does each token visit the experts that the rules, spoken aloud, send it to, and count them as they should?

The oracle below reads SPEC section 1 line by line: one token after another, plain Python numbers.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from moeviz import strategies
from moeviz.config import Knobs, Recipe, SettingsError, check
from moeviz.routing import (
    AFFINITIES,
    ROUTERS,
    affinity,
    best_first,
    decide,
    expert_choice,
    hash_table,
    hashed,
    route,
    tally,
)

GATINGS = tuple(strategies.AFFINITIES)


def test_there_is_a_function_for_every_choice_and_no_other():
    assert tuple(AFFINITIES) == tuple(strategies.AFFINITIES)
    assert tuple(ROUTERS) == tuple(strategies.ROUTERS)


# --- the rule, spoken aloud ------------------------------------------------------------------------------------------


def spoken_scores(logits: list[float], gating: str) -> list[float]:
    if gating == "sigmoid":
        return [1 / (1 + math.exp(-logit)) for logit in logits]
    if gating == "sqrtsoftplus":
        return [math.sqrt(math.log1p(math.exp(logit))) for logit in logits]
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


def spoken_route(logits: list[float], bias: list[float], knobs: Knobs) -> tuple[list[int], list[float]]:
    """Experts of one token, best first, and the gate of each."""
    scores = spoken_scores(logits, knobs.gating)
    factor = knobs.bias_rule == "multiplicative"
    selection = [score * b if factor else score + b for score, b in zip(scores, bias, strict=True)]
    size = len(scores) // knobs.num_groups
    group_scores = []
    for group in range(knobs.num_groups):
        members = sorted(selection[group * size : (group + 1) * size], reverse=True)
        group_scores.append(sum(members[:2]) if knobs.group_score == "top2" else members[0])
    best_groups = sorted(range(knobs.num_groups), key=lambda group: -group_scores[group])[: knobs.groups_kept]
    allowed = [expert for expert in range(len(scores)) if expert // size in best_groups]
    chosen = sorted(allowed, key=lambda expert: -selection[expert])[: knobs.top_k]
    total = sum(scores[expert] for expert in chosen)
    gates = [scores[expert] / total if knobs.norm_topk else scores[expert] for expert in chosen]
    return chosen, [gate * knobs.route_scale for gate in gates]


# --- random settings -------------------------------------------------------------------------------------------------


@st.composite
def routed(draw, max_tokens: int = 6):
    """Float64 logits (so that the oracle sees the same order), a bias, and knobs that go with them."""
    groups = draw(st.integers(1, 5))
    size = draw(st.integers(1, 5).filter(lambda size: size * groups >= 2))
    kept = draw(st.integers(1, groups))
    knobs = Knobs(
        gating=draw(st.sampled_from(GATINGS)),
        bias_rule=draw(st.sampled_from(["none", "sign", "multiplicative"])),
        top_k=draw(st.integers(1, kept * size)),
        num_groups=groups,
        groups_kept=kept,
        group_score=draw(st.sampled_from(["top2", "max"])),
        norm_topk=draw(st.booleans()),
        route_scale=draw(st.sampled_from([0.5, 1.0, 2.5, 16.0])),
    )
    check(Recipe(num_experts=groups * size), knobs)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens = draw(st.integers(1, max_tokens))
    logits = random.normal(0, draw(st.sampled_from([0.1, 1.0, 5.0])), (tokens, groups * size))
    bias = random.normal(draw(st.sampled_from([0.0, -5.0, 5.0])), draw(st.sampled_from([0.0, 0.1, 2.0])), groups * size)
    return torch.tensor(logits), torch.tensor(bias), knobs


@given(routed())
def test_experts_gates_and_load_are_those_of_the_rule_spoken_aloud(example):
    logits, bias, knobs = example
    routing = route(logits, bias, knobs)
    load = [0] * logits.shape[1]
    for token in range(len(logits)):
        chosen, gates = spoken_route(logits[token].tolist(), bias.tolist(), knobs)
        assert routing.chosen_TK[token].tolist() == chosen
        assert routing.gates_TK[token].tolist() == pytest.approx(gates, rel=1e-12)
        assert routing.scores_TE[token].tolist() == pytest.approx(
            spoken_scores(logits[token].tolist(), knobs.gating), rel=1e-12
        )
        for expert in chosen:
            load[expert] += 1
    assert routing.load_E.tolist() == load


@given(routed())
def test_every_token_has_k_different_experts_and_normalised_gates_sum_to_the_scale(example):
    logits, bias, knobs = example
    routing = route(logits, bias, knobs)
    for token in range(len(logits)):
        assert len(set(routing.chosen_TK[token].tolist())) == knobs.top_k
        if knobs.norm_topk:
            assert sum(routing.gates_TK[token].tolist()) == pytest.approx(knobs.route_scale)
    assert int(routing.load_E.sum()) == len(logits) * knobs.top_k


# --- groups ----------------------------------------------------------------------------------------------------------

TWO_OF_FOUR = Knobs(top_k=2, num_groups=4, groups_kept=1)


def selection_as(scores: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and bias of one token whose selection scores are these: every affinity is 0.5."""
    return torch.zeros(1, len(scores)), torch.tensor(scores) - 0.5


def test_a_group_is_scored_by_its_two_best_or_its_best():
    logits, bias = selection_as([0.9, 0.0, 0.6, 0.5, 0.1, 0.2, 0.3, 0.3])
    assert route(logits, bias, TWO_OF_FOUR).chosen_TK.tolist() == [[2, 3]]
    by_best = Knobs(top_k=2, num_groups=4, groups_kept=1, group_score="max")
    assert route(logits, bias, by_best).chosen_TK.tolist() == [[0, 1]]


def test_only_the_two_best_of_a_group_count_however_many_follow():
    logits, bias = selection_as([0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.0, 0.0])
    assert route(logits, bias, Knobs(top_k=2, num_groups=2)).chosen_TK.sort().values.tolist() == [[4, 5]]


@pytest.mark.parametrize("group_score", ["top2", "max"])
def test_with_one_expert_per_group_the_best_groups_are_the_best_experts(group_score):
    logits, bias = selection_as([0.1, 0.9, 0.5, 0.7])
    knobs = Knobs(top_k=2, num_groups=4, groups_kept=2, group_score=group_score)
    assert route(logits, bias, knobs).chosen_TK.tolist() == [[1, 3]]


@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize("down", [-1.5, -1e3, -1e30, -3.4e38])
def test_a_token_never_leaves_its_best_groups_however_negative_the_bias(down, kept):
    """A mask of 0 would let the experts outside win: all selection scores are negative (E6)."""
    logits = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    knobs = Knobs(top_k=4 * kept, num_groups=4, groups_kept=kept)
    for token in route(logits, torch.full((16,), down), knobs).chosen_TK.tolist():
        assert len({expert // 4 for expert in token}) <= kept
        assert len(set(token)) == 4 * kept


def test_with_all_scores_negative_the_best_of_the_best_group_are_chosen():
    logits, bias = selection_as([-3.0, -4.0, -1.0, -2.0, -9.0, -1.5, -8.0, -7.0])
    assert route(logits, bias, TWO_OF_FOUR).chosen_TK.tolist() == [[2, 3]]


# --- E1: the bias decides who is chosen and never enters a gate ------------------------------------------------------


@given(routed())
def test_the_gates_of_the_chosen_follow_from_the_affinities_alone(example):
    logits, bias, knobs = example
    routing = route(logits, bias, knobs)
    unbiased = route(logits, torch.zeros_like(bias), knobs)
    assert torch.equal(routing.scores_TE, unbiased.scores_TE)
    for token in range(len(logits)):
        gates = dict(zip(routing.chosen_TK[token].tolist(), routing.gates_TK[token].tolist(), strict=True))
        without = dict(zip(unbiased.chosen_TK[token].tolist(), unbiased.gates_TK[token].tolist(), strict=True))
        if gates.keys() == without.keys():
            assert gates == pytest.approx(without, rel=1e-12)
        if not knobs.norm_topk:
            for expert in gates.keys() & without.keys():
                assert gates[expert] == without[expert]


def test_a_bias_that_reorders_the_chosen_leaves_each_its_gate():
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0]])
    plain = route(logits, torch.zeros(4), Knobs())
    pushed = route(logits, torch.tensor([3.0, 7.0, 0.0, 0.0]), Knobs())
    assert plain.chosen_TK.tolist() == [[0, 1]]
    assert pushed.chosen_TK.tolist() == [[1, 0]]
    assert torch.equal(pushed.gates_TK, plain.gates_TK.flip(-1))


@pytest.mark.parametrize("norm_topk", [True, False])
def test_no_gradient_flows_through_the_bias_and_all_of_it_through_the_affinities(norm_topk):
    logits = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True)
    routing = route(logits, bias, Knobs(norm_topk=norm_topk))
    assert not routing.chosen_TK.requires_grad
    (routing.gates_TK * torch.arange(1.0, 3.0)).sum().backward()
    assert bias.grad is None
    touched = (logits.grad != 0).nonzero()[:, 1].view(5, 2)
    assert torch.equal(touched, routing.chosen_TK.sort().values)


@given(routed(), st.sampled_from([1.0, -2.0, 0.25, 64.0]))
def test_adding_a_constant_to_the_whole_bias_changes_nothing(example, constant):
    logits, bias, knobs = example
    assume(knobs.bias_rule != "multiplicative")  # a factor is no summand
    bias = (bias * 256).round() / 256  # sums with the constants are exact in binary
    selection = torch.tensor([spoken_scores(row, knobs.gating) for row in logits.tolist()]) + bias
    gaps = selection.sort(dim=-1).values.diff(dim=-1)
    assume(bool((gaps > 1e-9).all()))  # closer scores may swap by rounding, which is no matter of the rule
    before, after = route(logits, bias, knobs), route(logits, bias + constant, knobs)
    assert torch.equal(before.chosen_TK, after.chosen_TK)
    assert torch.equal(before.gates_TK, after.gates_TK)


def test_one_expert_with_normalised_gates_always_counts_in_full_and_teaches_the_router_nothing():
    logits = torch.randn(9, 8, requires_grad=True)
    gates = route(logits, torch.zeros(8), Knobs(top_k=1, route_scale=2.5)).gates_TK
    assert gates.detach().tolist() == [[2.5]] * 9
    gates.sum().backward()
    assert logits.grad.abs().max() < 1e-6


# --- number types and extremes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_on_in_float32(dtype, gating):
    logits = torch.randn(32, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    half, full = (route(values, torch.zeros(16), Knobs(gating=gating)) for values in (logits, logits.float()))
    assert half.scores_TE.dtype == half.gates_TK.dtype == torch.float32
    assert torch.equal(half.scores_TE, full.scores_TE)
    assert torch.equal(half.chosen_TK, full.chosen_TK)
    assert torch.equal(affinity(logits, gating), full.scores_TE), "also where somebody only looks"
    for token, row in enumerate(logits.double().tolist()):
        assert half.scores_TE[token].tolist() == pytest.approx(spoken_scores(row, gating), rel=1e-5)


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("norm_topk", [True, False])
@pytest.mark.parametrize("pattern", ["all high", "all low", "all faint", "one high", "one low", "mixed"])
def test_finite_logits_of_any_size_give_finite_gates(pattern, norm_topk, gating):
    logits = {
        "all high": torch.full((3, 8), 1e38),
        "all low": torch.full((3, 8), -1e38),
        "all faint": torch.full((3, 8), -50.0),  # affinities near what is added to their sum
        "one high": torch.eye(8)[:3] * 1e38,
        "one low": torch.eye(8)[:3] * -1e38,
        "mixed": torch.linspace(-1, 1, 24).view(3, 8) * 3e38,
    }[pattern].requires_grad_()
    routing = route(logits, torch.zeros(8), Knobs(gating=gating, norm_topk=norm_topk, top_k=3))
    assert routing.gates_TK.isfinite().all()
    assert (routing.gates_TK >= 0).all()
    routing.gates_TK.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["logits", "bias"])
def test_what_cannot_be_ranked_is_refused_with_its_name_and_a_remedy(where, value):
    logits, bias = torch.zeros(3, 4), torch.zeros(4)
    (logits[1] if where == "logits" else bias)[2] = value
    with pytest.raises(SettingsError, match=f"router's {where} hold NaN or infinity.*lower learning_rate"):
        route(logits, bias, Knobs())


@pytest.mark.parametrize("knobs", [Knobs(), Knobs(num_groups=4, groups_kept=2, gating="softmax")])
def test_no_tokens_make_no_load(knobs):
    routing = route(torch.zeros(0, 8), torch.zeros(8), knobs)
    assert routing.chosen_TK.shape == routing.gates_TK.shape == (0, 2)
    assert routing.scores_TE.shape == (0, 8)
    assert routing.load_E.tolist() == [0] * 8


def test_all_experts_chosen_means_every_expert_sees_every_token_once():
    routing = route(torch.randn(7, 6), torch.randn(6), Knobs(top_k=6, gating="softmax"))
    assert routing.load_E.tolist() == [7] * 6
    assert routing.gates_TK.sum(-1).tolist() == pytest.approx([1.0] * 7)


def test_all_tokens_may_choose_the_same_experts():
    logits = torch.randn(50, 8) * 0.1 + torch.tensor([0.0, 9.0, 0, 0, 0, 0, 7.0, 0])
    routing = route(logits, torch.zeros(8), Knobs())
    assert routing.load_E.tolist() == [0, 50, 0, 0, 0, 0, 50, 0]
    assert routing.chosen_TK.tolist() == [[1, 6]] * 50


@given(routed(max_tokens=8))
def test_changing_the_last_token_changes_no_earlier_route(example):
    """E7: a token's route depends on that token alone."""
    logits, bias, knobs = example
    other = logits.clone()
    other[-1] = -3 * other[-1] + 1
    before, after = route(logits, bias, knobs), route(other, bias, knobs)
    assert torch.equal(before.chosen_TK[:-1], after.chosen_TK[:-1])
    assert torch.equal(before.gates_TK[:-1], after.gates_TK[:-1])


def test_the_same_input_always_gives_the_same_answer_also_with_ties():
    logits = torch.zeros(20, 16)
    first = route(logits, torch.zeros(16), Knobs(num_groups=4, groups_kept=2))
    for _ in range(5):
        assert torch.equal(
            route(logits, torch.zeros(16), Knobs(num_groups=4, groups_kept=2)).chosen_TK, first.chosen_TK
        )


# --- affinities ------------------------------------------------------------------------------------------------------


def test_the_root_of_softplus_is_smooth_down_to_the_smallest_numbers_and_grows_like_a_root():
    logits = torch.linspace(-90, 90, 721, dtype=torch.float64, requires_grad=True)
    scores = affinity(logits, "sqrtsoftplus")
    scores.sum().backward()
    for logit, score, slope in zip(logits.tolist(), scores.tolist(), logits.grad.tolist(), strict=True):
        softplus = math.log1p(math.exp(logit))
        assert score == pytest.approx(math.sqrt(softplus), rel=1e-12)
        assert slope == pytest.approx(1 / (1 + math.exp(-logit)) / (2 * math.sqrt(softplus)), rel=1e-10)
    assert (scores.diff() > 0).all()


# --- a factor instead of a summand -----------------------------------------------------------------------------------


def test_the_multiplicative_bias_is_a_factor_of_the_affinity_and_one_changes_nothing():
    logits = torch.randn(30, 8, generator=torch.Generator().manual_seed(3))
    knobs = Knobs(bias_rule="multiplicative", num_groups=4, groups_kept=2)
    neutral, plain = (
        route(logits, torch.ones(8), knobs),
        route(logits, torch.zeros(8), Knobs(num_groups=4, groups_kept=2)),
    )
    assert torch.equal(neutral.chosen_TK, plain.chosen_TK)
    assert torch.equal(neutral.gates_TK, plain.gates_TK)
    # 0.5 * 3 beats 0.9 * 1 although 0.5 + 3 and 0.9 + 1 would too; 0.1 * 3 does not.
    logits = torch.logit(torch.tensor([[0.9, 0.5], [0.9, 0.1]]))
    chosen = route(logits, torch.tensor([1.0, 3.0]), Knobs(bias_rule="multiplicative", top_k=1)).chosen_TK
    assert chosen.tolist() == [[1], [0]]


def test_a_groups_score_is_made_of_what_is_chosen_by_also_under_a_factor():
    logits = torch.logit(torch.tensor([[0.6, 0.6, 0.5, 0.5]]))
    knobs = Knobs(bias_rule="multiplicative", num_groups=2, groups_kept=1)
    assert route(logits, torch.tensor([1.0, 1.0, 2.0, 2.0]), knobs).chosen_TK.sort().values.tolist() == [[2, 3]]


# --- expert choice ---------------------------------------------------------------------------------------------------


def spoken_expert_choice(scores: list[list[float]], top_k: int) -> list[list[int]]:
    """Every expert in turn takes its favourite tokens; then each token lists who took it, best first."""
    tokens, experts = len(scores), len(scores[0])
    places = math.ceil(tokens * top_k / experts)
    takers: list[list[int]] = [[] for _ in range(tokens)]
    for expert in range(experts):
        for token in sorted(range(tokens), key=lambda token: -scores[token][expert])[:places]:
            takers[token].append(expert)
    return [sorted(mine, key=lambda expert: -scores[token][expert]) for token, mine in enumerate(takers)]


@st.composite
def chosen_by_experts(draw):
    """Logits without ties, a bias, and knobs."""
    tokens, experts = draw(st.integers(1, 12)), draw(st.integers(2, 9))
    knobs = Knobs(
        router="expert_choice",
        gating=draw(st.sampled_from(GATINGS)),
        top_k=draw(st.integers(1, experts)),
        norm_topk=draw(st.booleans()),
        route_scale=draw(st.sampled_from([1.0, 2.5])),
    )
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    logits = 3 * torch.randn(tokens, experts, generator=random, dtype=torch.float64)
    return logits, torch.randn(experts, generator=random, dtype=torch.float64), knobs


@given(chosen_by_experts())
def test_with_expert_choice_experts_gates_and_load_are_those_of_the_rule_spoken_aloud(example):
    logits, bias, knobs = example
    routing = route(logits, bias, knobs)
    scores = [spoken_scores(row, knobs.gating) for row in logits.tolist()]
    expected = spoken_expert_choice(scores, knobs.top_k)
    assert routing.chosen_TK.shape == routing.gates_TK.shape == routing.valid_TK.shape
    assert routing.chosen_TK.shape[1] == max(len(mine) for mine in expected)
    for token, mine in enumerate(expected):
        count = len(mine)
        assert routing.valid_TK[token].tolist() == [True] * count + [False] * (routing.chosen_TK.shape[1] - count)
        assert routing.chosen_TK[token, :count].tolist() == mine
        total = sum(scores[token][expert] for expert in mine) if knobs.norm_topk else 1
        gates = [knobs.route_scale * scores[token][expert] / total for expert in mine]
        assert routing.gates_TK[token, :count].tolist() == pytest.approx(gates, rel=1e-12)
        assert not routing.gates_TK[token, count:].any(), "padding weighs nothing"
        if mine:
            assert set(routing.chosen_TK[token, count:].tolist()) <= {mine[0]}, "padding touches no further group"


@given(chosen_by_experts())
def test_with_expert_choice_every_expert_has_exactly_its_share_and_no_bias_changes_that(example):
    logits, bias, knobs = example
    routing, biased = route(logits, 0 * bias, knobs), route(logits, 100 * bias, knobs)
    tokens, experts = logits.shape
    assert routing.load_E.tolist() == [math.ceil(tokens * knobs.top_k / experts)] * experts
    assert torch.equal(routing.chosen_TK, biased.chosen_TK)
    assert torch.equal(routing.gates_TK, biased.gates_TK)


def test_expert_choice_sees_the_future_and_token_choice_does_not():
    """E7 fails, as it must: one more greedy token at the end takes places from tokens before it."""
    logits = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    greedy = logits.clone()
    greedy[-1] = 9
    for router, sees in (("expert_choice", True), ("top_k", False)):
        before, after = (route(values, torch.zeros(4), Knobs(router=router)) for values in (logits, greedy))
        changed = not torch.equal(before.gates_TK[:-1, :1], after.gates_TK[:-1, :1])
        assert changed is sees


def test_a_token_that_no_expert_takes_has_no_gate_and_the_gradient_stays_finite():
    logits = torch.tensor([[5.0, 5.0], [4.0, 4.0], [-9.0, -9.0], [-8.0, -8.0]], requires_grad=True)
    routing = route(logits, torch.zeros(2), Knobs(router="expert_choice", top_k=1))
    assert routing.valid_TK.any(-1).tolist() == [True, True, False, False]
    routing.gates_TK.sum().backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[2:].any()


# --- hash ------------------------------------------------------------------------------------------------------------


def test_a_hash_router_looks_nothing_but_the_token_id_up():
    ids = torch.tensor([7, 200, 7, 0])
    knobs = Knobs(router="hash", top_k=3, num_groups=4, groups_kept=2)
    one = route(torch.randn(4, 16), torch.zeros(16), knobs, ids)
    other = route(torch.randn(4, 16), 100 * torch.randn(16), knobs, ids)
    assert torch.equal(one.chosen_TK, other.chosen_TK)
    assert torch.equal(one.chosen_TK[0], one.chosen_TK[2])
    assert one.chosen_TK.tolist() == [hash_table(16)[token, :3].tolist() for token in ids.tolist()]
    gates = one.scores_TE.gather(1, one.chosen_TK)
    torch.testing.assert_close(one.gates_TK, gates / gates.sum(-1, keepdim=True))


@pytest.mark.parametrize("experts", [2, 16, 256])
def test_every_token_id_has_its_own_order_of_all_experts(experts):
    table = hash_table(experts).tolist()
    assert len(table) == 256
    assert all(sorted(order) == list(range(experts)) for order in table)
    assert len({tuple(order) for order in table}) == (2 if experts == 2 else 256)


def test_the_hash_table_is_the_same_on_every_machine():
    """Written down once; another table would send every old run elsewhere."""
    assert hash_table(8)[[0, 1, 255]].tolist() == [
        [4, 5, 0, 2, 1, 7, 3, 6],
        [7, 3, 5, 0, 6, 1, 4, 2],
        [4, 6, 2, 7, 0, 1, 3, 5],
    ]


def test_hash_routing_is_as_even_as_the_token_ids_are_frequent():
    knobs = Knobs(router="hash", top_k=2)
    every_id = route(torch.zeros(256 * 4, 16), torch.zeros(16), knobs, torch.arange(256).repeat(4)).load_E
    assert every_id.max() < 1.5 * every_id.float().mean()
    one_id = route(torch.zeros(256, 16), torch.zeros(16), knobs, torch.full((256,), 65)).load_E
    assert sorted(one_id.tolist())[-3:] == [0, 256, 256]


def test_a_hash_router_without_token_ids_says_what_it_needs():
    with pytest.raises(ValueError, match=r"^router=hash needs token_id_T, a number from 0 to 255"):
        route(torch.zeros(3, 4), torch.zeros(4), Knobs(router="hash"))


@pytest.mark.parametrize("router", ROUTERS)
def test_no_tokens_make_no_load_with_any_router(router):
    routing = route(torch.zeros(0, 8), torch.zeros(8), Knobs(router=router), torch.zeros(0, dtype=torch.long))
    assert routing.chosen_TK.shape == routing.gates_TK.shape == (0, 2)
    assert routing.load_E.tolist() == [0] * 8


def test_what_a_router_looks_up_lies_where_its_scores_lie():
    """`meta` stands for any device that is not the one where tables are made."""
    elsewhere = torch.zeros(3, 4, device="meta")
    chosen, _ = hashed(elsewhere, elsewhere[0], Knobs(router="hash"), torch.zeros(3, dtype=torch.long, device="meta"))
    nobody, _ = expert_choice(elsewhere[:0], elsewhere[0], Knobs(router="expert_choice"), None)
    assert chosen.device == nobody.device == elsewhere.device


# --- what makes it fast ----------------------------------------------------------------------------------------------

ODD = st.sampled_from([-math.inf, -3e38, -1.5, -1.25, -1e-44, -0.0, 0.0, 1e-44, 0.5, 0.5000001, 1.0, 3e38])


@given(st.data())
def test_the_best_come_first_and_of_equal_values_the_earlier(data):
    """Against Python's stable sort, with denormals, the largest numbers and masked experts."""
    experts = data.draw(st.integers(2, 40))
    count = data.draw(st.integers(1, experts // 2))
    values = st.one_of(ODD, st.floats(-4, 4, width=32))
    row = data.draw(st.lists(values, min_size=experts, max_size=experts))
    places = best_first(torch.tensor([[row]], dtype=torch.float32), count)
    assert places.shape == (1, 1, count)
    assert [row[place] for place in places[0, 0]] == sorted(row, reverse=True)[:count]
    assert len(set(places[0, 0].tolist())) == count
    if min(row) > 0:
        assert places[0, 0].tolist() == sorted(range(experts), key=lambda place: -row[place])[:count]


@pytest.mark.parametrize(("experts", "count"), [(16, 2), (64, 4), (256, 8), (5, 2), (16, 12), (64, 32)])
def test_the_best_are_those_that_torch_finds(experts, count):
    values_TE = torch.randn(500, experts, generator=torch.Generator().manual_seed(experts))
    for dtype in (torch.float32, torch.float64):
        expected = values_TE.to(dtype).topk(count, dim=-1).indices
        assert torch.equal(best_first(values_TE.to(dtype), count), expected)
        of_twins = best_first(values_TE.to(dtype).view(2, 250, experts), count)
        assert torch.equal(of_twins, expected.view(2, 250, count))


@pytest.mark.parametrize("experts", [6, 8, 13])
def test_rows_of_nan_still_name_experts_that_exist(experts):
    """What becomes of them is the engine's business: it looks at the logits once per step."""
    knobs = Knobs(top_k=2)
    routing = decide(torch.full((4, experts), math.nan), torch.zeros(experts), knobs)
    assert 0 <= int(routing.chosen_TK.min()) <= int(routing.chosen_TK.max()) < experts
    assert routing.gates_TK.isnan().all()


@given(st.data())
def test_a_tally_counts_each_row_apart(data):
    experts, rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3)), data.draw(st.integers(0, 20))
    ids = data.draw(
        st.lists(
            st.lists(st.integers(0, experts - 1), min_size=columns, max_size=columns), min_size=rows, max_size=rows
        )
    )
    valid = data.draw(
        st.lists(st.lists(st.booleans(), min_size=columns, max_size=columns), min_size=rows, max_size=rows)
    )
    counted = tally(torch.tensor(ids).view(rows, columns), experts)
    assert counted.tolist() == [[row.count(expert) for expert in range(experts)] for row in ids]
    kept = tally(torch.tensor(ids).view(rows, columns), experts, torch.tensor(valid).view(rows, columns).bool())
    pairs = [list(zip(row, keep, strict=True)) for row, keep in zip(ids, valid, strict=True)]
    assert kept.tolist() == [[row.count((expert, True)) for expert in range(experts)] for row in pairs]


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 2.5])
def test_the_scale_is_a_factor_on_every_gate(scale):
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    plain, scaled = (route(logits, torch.zeros(8), Knobs(route_scale=factor)).gates_TK for factor in (1.0, scale))
    torch.testing.assert_close(scaled, scale * plain)


# --- twins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs",
    [
        Knobs(),
        Knobs(top_k=3, num_groups=4, groups_kept=2, gating="softmax"),
        Knobs(num_groups=2, groups_kept=1, group_score="max", norm_topk=False, route_scale=2.5),
        Knobs(bias_rule="multiplicative"),
        Knobs(router="expert_choice", top_k=3),
        Knobs(router="hash"),
    ],
    ids=["plain", "groups", "best group", "factor", "expert choice", "hash"],
)
def test_runs_routed_together_are_routed_as_each_alone(knobs):
    random = torch.Generator().manual_seed(5)
    logits_RTE, bias_RE = torch.randn(3, 20, 8, generator=random), torch.randn(3, 8, generator=random)
    token_id_T = torch.randint(256, (20,), generator=random)
    both = route(logits_RTE, bias_RE, knobs, token_id_T)
    for place in range(3):
        own, alone = both.twin(place), route(logits_RTE[place], bias_RE[place], knobs, token_id_T)
        assert torch.equal(own.load_E, alone.load_E)
        real = slice(None) if alone.valid_TK is None else alone.valid_TK
        width = alone.chosen_TK.shape[-1]  # with expert choice the busiest token of all runs decides
        assert torch.equal(own.chosen_TK[:, :width][real], alone.chosen_TK[real])
        assert torch.equal(own.gates_TK[:, :width][real], alone.gates_TK[real])
        assert torch.equal(own.scores_TE, alone.scores_TE)
        if own.valid_TK is not None:
            assert int(own.valid_TK.sum()) == int(alone.valid_TK.sum())


def test_no_tokens_of_several_runs_are_routed_nowhere():
    for router in ROUTERS:
        empty = route(torch.zeros(2, 0, 4), torch.zeros(2, 4), Knobs(router=router), torch.zeros(0, dtype=torch.long))
        assert empty.chosen_TK.shape == (2, 0, 2)
        assert empty.chosen_TK.dtype == torch.long
        assert empty.load_E.tolist() == [[0] * 4] * 2
