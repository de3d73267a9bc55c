"""Do the bias rules nudge, and the losses weigh, as the equations say when they are read out slowly?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeviz.balance import AUX_LOSSES, BIAS_RULES, added_loss
from moeviz.config import KNOB_FIELDS, Knobs
from moeviz.routing import Routing, route

# --- bias rules ------------------------------------------------------------------------------------------------------


def spoken_sign(bias: list[float], load: list[int], u: float) -> list[float]:
    """Under the mean: up by u. Over the mean: down by u. At the mean: stay. In float32, as the bias is kept."""
    moved = []
    for b, count in zip(bias, load, strict=True):
        difference = sum(load) - count * len(load)  # mean - load, times the number of experts: a whole number
        nudge = 0.0 if difference == 0 else (u if difference > 0 else -u)
        moved.append(np.float32(np.float32(b) + np.float32(nudge)))
    return moved


@given(
    st.integers(1, 3),
    st.integers(2, 60),
    st.sampled_from([2, 3, 500]),
    st.sampled_from([0.0, 1e-3, 3e-3, 0.25]),
    st.integers(0, 2**32 - 1),
)
def test_the_sign_rule_is_the_one_spoken_aloud_in_every_layer(layers, experts, largest, u, seed):
    random = np.random.default_rng(seed)
    bias = random.normal(0, 1, (layers, experts)).astype(np.float32)
    load = random.integers(0, largest, (layers, experts))
    load[0] = largest  # one layer in perfect balance: nobody moves
    moved = BIAS_RULES["sign"](torch.tensor(bias), torch.tensor(load), u)
    assert moved.dtype == torch.float32
    for layer in range(layers):
        expected = spoken_sign(bias[layer].tolist(), load[layer].tolist(), u)
        np.testing.assert_allclose(moved[layer].numpy(), expected, rtol=0, atol=1e-6)
        still = [count * experts == sum(load[layer]) for count in load[layer]]
        assert torch.equal(moved[layer][still], torch.tensor(bias)[layer][still])


@pytest.mark.parametrize("experts", [3, 6, 7, 12, 49, 100, 187, 255])
def test_an_expert_at_the_mean_stays_also_where_one_over_e_has_no_exact_float(experts):
    for count in (1, 3, 7, 41, 1000):
        load = torch.full((1, experts), count)
        assert torch.equal(BIAS_RULES["sign"](torch.zeros(1, experts), load, 0.5), torch.zeros(1, experts))


def test_an_overloaded_expert_goes_down_and_an_idle_one_up():
    moved = BIAS_RULES["sign"](torch.zeros(1, 4), torch.tensor([[8, 4, 0, 4]]), 0.25)
    assert moved.tolist() == [[-0.25, 0.0, 0.25, 0.0]]


def test_layers_do_not_see_each_others_load():
    moved = BIAS_RULES["sign"](torch.zeros(2, 2), torch.tensor([[1, 3], [90, 10]]), 0.5)
    assert moved.tolist() == [[0.5, -0.5], [-0.5, 0.5]]


@given(st.integers(2, 40), st.sampled_from([2**-10, 2**-3]), st.integers(0, 2**32 - 1))
def test_a_sign_step_moves_each_bias_by_u_or_not_at_all(experts, u, seed):
    """E5, with a bias and a u that binary floats hold exactly."""
    random = np.random.default_rng(seed)
    bias = torch.tensor(random.integers(-64, 64, (1, experts)) * u, dtype=torch.float32)
    load = torch.tensor(random.integers(0, 4, (1, experts)))
    steps = (BIAS_RULES["sign"](bias, load, u) - bias) / u
    assert set(steps.flatten().tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("rule", [rule for rule in BIAS_RULES if rule != "none"])
def test_u_zero_freezes_the_bias(rule):
    bias = torch.randn(2, 8)
    assert torch.equal(BIAS_RULES[rule](bias, torch.randint(0, 50, (2, 8)), 0.0), bias)


def test_no_rule_means_no_bias():
    assert BIAS_RULES["none"](torch.randn(2, 8), torch.randint(0, 50, (2, 8)), 0.1).tolist() == [[0.0] * 8] * 2


@pytest.mark.parametrize("rule", BIAS_RULES)
def test_a_rule_leaves_the_bias_it_was_given_as_it_was(rule):
    bias = torch.randn(2, 8)
    before = bias.clone()
    BIAS_RULES[rule](bias, torch.randint(0, 50, (2, 8)), 0.1)
    assert torch.equal(bias, before)


def test_there_is_a_function_for_every_choice_and_no_other():
    assert tuple(BIAS_RULES) == KNOB_FIELDS["bias_rule"].metadata["choices"]
    assert ("none", *AUX_LOSSES) == KNOB_FIELDS["aux_loss"].metadata["choices"]


# --- losses ----------------------------------------------------------------------------------------------------------


def spoken_loss(scores: list[list[float]], chosen: list[list[int]]) -> float:
    """sum over experts of f_i P_i over these tokens: how often chosen, times how much wanted."""
    tokens, experts, top_k = len(scores), len(scores[0]), len(chosen[0])
    total = 0.0
    for expert in range(experts):
        count = sum(row.count(expert) for row in chosen)
        f = experts / (top_k * tokens) * count
        P = sum(row[expert] / sum(row) for row in scores) / tokens
        total += f * P
    return total


def spoken_top(row: list[float], top_k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda expert: -row[expert])[:top_k]


def spoken_added(routings: list[Routing], knobs: Knobs, sequences: int) -> float:
    per_layer = []
    for routing in routings:
        scores, chosen = routing.scores_TE.tolist(), routing.chosen_TK.tolist()
        if knobs.aux_loss == "batch":
            per_layer.append(spoken_loss(scores, chosen))
            continue
        length = len(scores) // sequences
        losses = []
        for start in range(0, len(scores), length):
            part = scores[start : start + length]
            losses.append(spoken_loss(part, [spoken_top(row, knobs.top_k) for row in part]))
        per_layer.append(sum(losses) / sequences)
    return knobs.alpha * sum(per_layer) / len(per_layer)


@st.composite
def layers_of_routes(draw):
    """A few layers, routed with a strong bias and with groups, so that the choice is not the plain top-K."""
    groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    experts = groups * size
    if experts == 1:
        experts = size = 2
    kept = draw(st.integers(1, groups))
    sequences, length = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    knobs = Knobs(
        aux_loss=draw(st.sampled_from(["batch", "sequence"])),
        alpha=draw(st.sampled_from([1e-4, 0.1, 1.0, 10.0])),
        gating=draw(st.sampled_from(["softmax", "sigmoid"])),
        num_groups=groups,
        groups_kept=kept,
        top_k=draw(st.integers(1, kept * size)),
    )
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    routings = []
    for _ in range(draw(st.integers(1, 3))):
        logits = 2 * torch.randn(sequences * length, experts, generator=random, dtype=torch.float64)
        bias = torch.randn(experts, generator=random, dtype=torch.float64)
        routings.append(route(logits, bias, knobs))
    return routings, knobs, sequences


@given(layers_of_routes())
def test_the_added_loss_is_the_one_spoken_aloud_averaged_over_layers(example):
    routings, knobs, sequences = example
    assert float(added_loss(routings, knobs, sequences)) == pytest.approx(
        spoken_added(routings, knobs, sequences), rel=1e-10
    )


def a_routing(knobs: Knobs, tokens: int = 24, experts: int = 8, logits=None, bias=None) -> Routing:
    random = torch.Generator().manual_seed(4)
    logits = torch.randn(tokens, experts, generator=random) if logits is None else logits
    return route(logits, torch.zeros(experts) if bias is None else bias, knobs)


@given(layers_of_routes())
def test_the_relative_counts_f_sum_to_the_number_of_experts(example):
    """E2: seen from outside, a loss with f = E count / (K T) and P_i = 1 for every i would be E."""
    routings, knobs, _ = example
    for routing in routings:
        tokens, experts = routing.scores_TE.shape
        # With K = E the plain top-K is everyone: f is 1 for each expert and the loss is the sum of P, which is 1.
        everyone = route(routing.scores_TE, torch.zeros(experts, dtype=torch.float64), Knobs(top_k=experts))
        assert float(AUX_LOSSES["batch"](everyone, 1)) == pytest.approx(1.0)
        f = [experts / (knobs.top_k * tokens) * count for count in routing.load_E.tolist()]
        assert sum(f) == pytest.approx(experts)


@pytest.mark.parametrize("aux_loss", AUX_LOSSES)
@pytest.mark.parametrize("gating", ["softmax", "sigmoid"])
def test_uniform_affinities_cost_exactly_alpha_however_uneven_the_load(aux_loss, gating):
    """E2: the bias sends every token to the same two experts, and the loss does not see it."""
    knobs = Knobs(aux_loss=aux_loss, alpha=0.3, gating=gating)
    routing = a_routing(knobs, logits=torch.zeros(24, 8), bias=torch.tensor([9.0, 8.0, 0, 0, 0, 0, 0, 0]))
    assert routing.load_E.tolist() == [24, 24, 0, 0, 0, 0, 0, 0]
    assert float(added_loss([routing], knobs, 4)) == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize("aux_loss", AUX_LOSSES)
def test_perfect_balance_costs_less_than_collapse(aux_loss):
    knobs = Knobs(aux_loss=aux_loss, alpha=1.0, top_k=1)
    balanced = a_routing(knobs, logits=6 * torch.eye(8).repeat(3, 1))
    collapsed = a_routing(knobs, logits=6 * torch.eye(8)[:1].repeat(24, 1))
    assert float(added_loss([balanced], knobs, 3)) == pytest.approx(1.0, rel=1e-5)
    assert float(added_loss([collapsed], knobs, 3)) > 1.5


@pytest.mark.parametrize("aux_loss", AUX_LOSSES)
def test_the_gradient_flows_through_p_alone_with_f_as_constants(aux_loss):
    knobs = Knobs(aux_loss=aux_loss, alpha=0.7)
    logits = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    added_loss([a_routing(knobs, experts=6, logits=logits)], knobs, 3).backward()
    gradient, logits.grad = logits.grad, None

    scores = logits.sigmoid()
    share = scores / scores.sum(-1, keepdim=True)
    by_hand = torch.zeros((), dtype=torch.float64)
    parts = [range(12)] if aux_loss == "batch" else [range(4), range(4, 8), range(8, 12)]
    for part in parts:
        chosen = [spoken_top(scores[token].tolist(), 2) for token in part]
        for expert in range(6):
            f = 6 / (2 * len(part)) * sum(row.count(expert) for row in chosen)
            by_hand = by_hand + 0.7 * f * sum(share[token, expert] for token in part) / len(part) / len(parts)
    by_hand.backward()
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-9, atol=1e-12)
    assert gradient.abs().max() > 1e-4


def test_the_sequence_loss_counts_the_unbiased_choice_without_groups_and_the_batch_loss_the_real_one():
    knobs = Knobs(num_groups=4, groups_kept=1)
    logits = torch.randn(24, 8, generator=torch.Generator().manual_seed(5))
    plain = a_routing(Knobs(), logits=logits)
    steered = a_routing(knobs, logits=logits, bias=torch.linspace(-2, 2, 8))
    assert not torch.equal(plain.load_E, steered.load_E)
    sequence, batch = AUX_LOSSES["sequence"], AUX_LOSSES["batch"]
    assert float(sequence(steered, 4)) == float(sequence(plain, 4))
    assert float(batch(steered, 4)) != pytest.approx(float(batch(plain, 4)), rel=1e-3)


def test_over_one_sequence_and_without_bias_both_losses_agree():
    routing = a_routing(Knobs())
    assert float(AUX_LOSSES["sequence"](routing, 1)) == pytest.approx(float(AUX_LOSSES["batch"](routing, 1)), rel=1e-6)


def test_sequences_that_are_each_one_sided_cost_more_than_their_balanced_batch():
    knobs = Knobs(top_k=1)
    logits = 6 * torch.eye(4).repeat_interleave(5, dim=0)  # sequence n wants expert n alone
    routing = a_routing(knobs, experts=4, logits=logits)
    assert float(AUX_LOSSES["batch"](routing, 4)) == pytest.approx(1.0, rel=1e-4)
    assert float(AUX_LOSSES["sequence"](routing, 4)) > 1.5


@pytest.mark.parametrize("off", [{"aux_loss": "none"}, {"alpha": 0.0}])
def test_nothing_is_added_where_there_is_no_loss_or_no_weight(off):
    knobs = replace(Knobs(aux_loss="batch"), **off)
    logits = torch.randn(12, 6, requires_grad=True)
    added = added_loss([a_routing(knobs, experts=6, logits=logits)], knobs, 3)
    assert float(added) == 0.0
    assert not added.requires_grad


@pytest.mark.parametrize("aux_loss", AUX_LOSSES)
def test_logits_of_any_size_cost_a_finite_loss(aux_loss):
    knobs = Knobs(aux_loss=aux_loss)
    for size in (1e38, -1e38):
        logits = torch.full((8, 4), size).requires_grad_()
        added = added_loss([a_routing(knobs, experts=4, logits=logits)], knobs, 2)
        added.backward()
        assert added.isfinite()
        assert logits.grad.isfinite().all()
