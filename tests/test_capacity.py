"""Are exactly those dropped for whom, by the rule spoken aloud, there is no place?"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeviz.capacity import capacity, keep
from moeviz.config import Knobs, Recipe
from moeviz.metrics import max_vio
from moeviz.model import MoELayer, rms_norm
from moeviz.routing import route
from tests.one_run import layer_of

# --- how many places -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "top_k", "bins", "factor", "places"),
    [
        (100, 1, 10, 1.1, 11),  # in binary floats a little over 11, which would be 12
        (1000, 1, 100, 1.1, 11),
        (100, 1, 10, 1.0, 10),
        (100, 1, 10, 1.01, 11),
        (50, 2, 3, 1.25, 42),
        (10, 1, 10, 0.1, 1),
        (7, 1, 3, 1, 3),
        (0, 2, 8, 1.25, 0),
    ],
)
def test_capacity_is_exact_for_the_decimal_that_people_see(tokens, top_k, bins, factor, places):
    assert capacity(tokens, top_k, bins, factor) == places


@given(
    st.integers(1, 1600), st.sampled_from([1, 10, 100]), st.integers(1, 8192), st.integers(1, 64), st.integers(1, 256)
)
def test_capacity_is_the_smallest_whole_number_that_is_enough(digits, unit, tokens, top_k, bins):
    text = str(Decimal(digits) / unit)
    needed = Decimal(text) * tokens * top_k
    places = capacity(tokens, top_k, bins, float(text))
    assert places * bins >= needed
    assert (places - 1) * bins < needed


# --- who gets one ----------------------------------------------------------------------------------------------------


def spoken_keep(chosen, affinity, protected, num_experts, bins, factor) -> list[list[bool]]:
    """One bin after another: protected pairs sit down first, then the others by affinity while places last."""
    tokens, top_k = len(chosen), len(chosen[0])
    places = 0
    while Decimal(places) * bins < Decimal(str(factor)) * tokens * top_k:
        places += 1
    kept = [[False] * top_k for _ in range(tokens)]
    for bin_number in range(bins):
        queue = []
        for token in range(tokens):
            for slot in range(top_k):
                if chosen[token][slot] // (num_experts // bins) == bin_number:
                    queue.append((not protected[token], -affinity[token][slot], token, slot))
        for place, (unprotected, _, token, slot) in enumerate(sorted(queue)):
            kept[token][slot] = place < places or not unprotected
    return kept


@st.composite
def queues(draw):
    """Distinct experts per token, affinities that are often equal, any share of protected tokens."""
    devices = draw(st.integers(1, 4))
    experts = devices * draw(st.integers(1, 4))
    top_k = draw(st.integers(1, experts))
    tokens = draw(st.integers(1, 20))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    popularity = random.exponential(1, experts) ** draw(st.sampled_from([0, 3]))
    popularity = popularity / popularity.sum() * 0.9 + 0.1 / experts
    chosen = [random.choice(experts, top_k, replace=False, p=popularity).tolist() for _ in range(tokens)]
    affinity = random.choice([0.25, 0.5, 0.75, random.random()], (tokens, top_k)).tolist()
    protected = (random.random(tokens) < draw(st.sampled_from([0.0, 0.2, 1.0]))).tolist()
    factor = draw(st.sampled_from([0.1, 0.5, 1.0, 1.1, 1.25, 2.0]))
    knobs = Knobs(
        top_k=top_k,
        num_devices=devices,
        capacity_factor=factor,
        token_dropping=draw(st.sampled_from(["expert", "device"])),
    )
    return chosen, affinity, protected, experts, knobs


@given(queues())
def test_the_kept_pairs_are_those_of_the_rule_spoken_aloud(example):
    chosen, affinity, protected, experts, knobs = example
    kept = keep(torch.tensor(chosen), torch.tensor(affinity), torch.tensor(protected), experts, knobs)
    bins = experts if knobs.token_dropping == "expert" else knobs.num_devices
    assert kept.tolist() == spoken_keep(chosen, affinity, protected, experts, bins, knobs.capacity_factor)


@given(queues())
def test_no_pair_of_a_protected_token_is_dropped_and_no_bin_overflows_for_others(example):
    chosen, affinity, protected, experts, knobs = example
    kept = keep(torch.tensor(chosen), torch.tensor(affinity), torch.tensor(protected), experts, knobs).tolist()
    bins = experts if knobs.token_dropping == "expert" else knobs.num_devices
    places = capacity(len(chosen), knobs.top_k, bins, knobs.capacity_factor)
    taken, taken_by_protected = [0] * bins, [0] * bins
    for token, pairs in enumerate(kept):
        if protected[token]:
            assert all(pairs)
        for expert, stays in zip(chosen[token], pairs, strict=True):
            taken[expert // (experts // bins)] += stays
            taken_by_protected[expert // (experts // bins)] += stays and protected[token]
    for total, exempt in zip(taken, taken_by_protected, strict=True):
        assert total <= max(places, exempt)


def test_equal_affinities_keep_the_earlier_token_and_then_the_earlier_slot():
    one_place_each = Knobs(token_dropping="expert", capacity_factor=0.5, top_k=2)
    chosen, affinity = torch.tensor([[0, 1], [1, 0]]), torch.full((2, 2), 0.5)
    nobody = torch.zeros(2, dtype=torch.bool)
    assert keep(chosen, affinity, nobody, 2, one_place_each).tolist() == [[True, True], [False, False]]
    three_places = Knobs(token_dropping="device", num_devices=1, capacity_factor=0.75, top_k=2)
    assert keep(chosen, affinity, nobody, 2, three_places).tolist() == [[True, True], [True, False]]


def test_the_lowest_affinity_goes_first_wherever_it_stands():
    chosen = torch.zeros(4, 1, dtype=torch.long)
    knobs = Knobs(token_dropping="expert", capacity_factor=1.0, top_k=1)
    kept = keep(chosen, torch.tensor([[0.2], [0.9], [0.1], [0.8]]), torch.zeros(4, dtype=torch.bool), 2, knobs)
    assert kept.tolist() == [[False], [True], [False], [True]]


def test_protected_tokens_take_their_places_first_and_may_exceed_the_capacity():
    chosen, affinity = torch.zeros(4, 1, dtype=torch.long), torch.tensor([[0.9], [0.2], [0.1], [0.8]])
    knobs = Knobs(token_dropping="expert", capacity_factor=1.0, top_k=1)  # two places
    one = keep(chosen, affinity, torch.tensor([False, True, False, False]), 2, knobs)
    assert one.tolist() == [[True], [True], [False], [False]]
    three = keep(chosen, affinity, torch.tensor([False, True, True, True]), 2, knobs)
    assert three.tolist() == [[False], [True], [True], [True]]


def test_no_tokens_need_no_place():
    empty = torch.zeros(0, 2)
    assert keep(empty.long(), empty, torch.zeros(0, dtype=torch.bool), 4, Knobs(token_dropping="expert")).shape == (
        0,
        2,
    )


# --- E3, E4: what the shape of a load says about drops ---------------------------------------------------------------


@st.composite
def skewed_routes(draw):
    """A route whose pairs fill whole capacities, so that the ceiling in the capacity is exact."""
    devices, per_device = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    experts = devices * per_device
    top_k = draw(st.integers(1, experts))
    tokens = experts * draw(st.integers(1, 12))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    skew = torch.randn(experts, generator=random) * draw(st.sampled_from([0.0, 0.5, 3.0]))
    logits = torch.randn(tokens, experts, generator=random) + skew
    knobs = Knobs(top_k=top_k, num_devices=devices, capacity_factor=1.0)
    return route(logits, torch.zeros(experts), knobs), tokens, experts, knobs


def dropped(routing, tokens, experts, knobs) -> int:
    affinity = routing.scores_TE.gather(1, routing.chosen_TK)
    kept = keep(routing.chosen_TK, affinity, torch.zeros(tokens, dtype=torch.bool), experts, knobs)
    return tokens * knobs.top_k - int(kept.sum())


@given(skewed_routes())
def test_at_factor_one_the_dropped_fraction_is_half_the_distance_from_a_uniform_load(example):
    routing, tokens, experts, knobs = example
    pairs = tokens * knobs.top_k
    distance = sum(abs(load / pairs - 1 / experts) for load in routing.load_E.tolist()) / 2
    lost = dropped(routing, tokens, experts, replace(knobs, token_dropping="expert"))
    assert lost / pairs == pytest.approx(distance, abs=1e-12)


@given(skewed_routes())
def test_drops_and_violation_bound_each_other_and_devices_suffer_less_than_experts(example):
    routing, tokens, experts, knobs = example
    pairs = tokens * knobs.top_k
    at_experts = dropped(routing, tokens, experts, replace(knobs, token_dropping="expert")) / pairs
    at_devices = dropped(routing, tokens, experts, replace(knobs, token_dropping="device")) / pairs
    load = routing.load_E.numpy()
    violation = float(max_vio(load))
    device_violation = float(max_vio(load.reshape(knobs.num_devices, -1).sum(-1)))
    slack = 1e-9
    assert violation / experts <= at_experts + slack
    assert at_experts <= violation / (1 + violation) + slack
    assert at_devices <= at_experts + slack
    assert device_violation <= violation + slack
    assert violation <= experts / knobs.top_k - 1 + slack


# --- what a drop does to the layer's output --------------------------------------------------------------------------


@pytest.mark.parametrize("dropping", ["expert", "device"])
@pytest.mark.parametrize("shared", [0, 2])
def test_a_dropped_pair_takes_exactly_its_own_term_away_and_no_survivor_grows(dropping, shared):
    torch.manual_seed(0)
    recipe = Recipe(num_experts=4, d_model=8, d_expert=8, shared_experts=shared)
    layer = MoELayer(recipe)
    x_Td = torch.randn(24, 8)
    bias = torch.tensor([0.03, 0.0, -0.01, 0.01])  # enough to reorder a device's queue if it were let in
    knobs = Knobs(token_dropping=dropping, num_devices=2, capacity_factor=0.6, route_scale=2.5)
    protected = torch.arange(24) < 5
    with torch.no_grad():
        full, routing, load = layer_of(layer, x_Td, bias, knobs)
        limited, _, kept_load = layer_of(layer, x_Td, bias, knobs, protected)
        affinity = routing.scores_TE.gather(1, routing.chosen_TK)
        bins = 4 if dropping == "expert" else 2
        kept = spoken_keep(routing.chosen_TK.tolist(), affinity.tolist(), protected.tolist(), 4, bins, 0.6)
        normed = rms_norm(x_Td)
        expected, expected_load = full.clone(), [0] * 4
        for token in range(24):
            for slot, expert in enumerate(routing.chosen_TK[token].tolist()):
                if kept[token][slot]:
                    expected_load[expert] += 1
                    continue
                gate, up = (normed[token] @ layer.w_in_Ed2H[0, expert]).chunk(2)
                term = (gate * gate.sigmoid() * up) @ layer.w_out_EHd[0, expert]
                expected[token] -= routing.gates_TK[token, slot] * term
    assert 0 < sum(expected_load) < int(load.sum()) == 48
    assert kept_load.tolist() == expected_load
    torch.testing.assert_close(limited, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(limited, full, atol=1e-2)


def test_a_token_without_any_place_keeps_its_residual_and_its_shared_experts():
    torch.manual_seed(0)
    layer = MoELayer(Recipe(num_experts=4, d_model=8, d_expert=8, shared_experts=1))
    x_Td = torch.randn(10, 8)
    crowd = torch.tensor([9.0, 9.0, 0.0, 0.0])
    knobs = Knobs(token_dropping="expert", capacity_factor=0.1)
    with torch.no_grad():
        out, routing, kept_load = layer_of(layer, x_Td, crowd, knobs, torch.zeros(10, dtype=torch.bool))
        normed = rms_norm(x_Td)
        gate, up = (normed @ layer.shared_in[0]).chunk(2, dim=-1)
        alone = x_Td + (gate * gate.sigmoid() * up) @ layer.shared_out[0]
    assert kept_load.tolist() == [1, 1, 0, 0]
    winners = {int(routing.scores_TE[:, expert].argmax()) for expert in (0, 1)}
    losers = [token for token in range(10) if token not in winners]
    torch.testing.assert_close(out[losers], alone[losers], rtol=1e-5, atol=1e-6)
    for winner in winners:
        assert not torch.allclose(out[winner], alone[winner], atol=1e-3)


def test_without_a_mask_of_protected_tokens_nothing_is_dropped():
    torch.manual_seed(0)
    layer = MoELayer(Recipe(num_experts=4, d_model=8, d_expert=8))
    knobs = Knobs(token_dropping="expert", capacity_factor=0.1)
    with torch.no_grad():
        evaluated, routing, kept_load = layer_of(layer, torch.ones(10, 8), torch.zeros(4), knobs)
        plain, _, _ = layer_of(layer, torch.ones(10, 8), torch.zeros(4), Knobs())
    assert torch.equal(evaluated, plain)
    assert torch.equal(kept_load, routing.load_E)


# --- padding of expert choice ----------------------------------------------------------------------------------------


@given(queues(), st.integers(1, 4))
def test_padding_takes_no_place_and_never_stays(example, columns):
    """The same queue with columns of padding: whoever had a place keeps it, and nobody else gets one."""
    chosen, affinity, protected, experts, knobs = example
    tokens, top_k = len(chosen), knobs.top_k
    plain = keep(torch.tensor(chosen), torch.tensor(affinity), torch.tensor(protected), experts, knobs)
    padded_chosen = torch.cat([torch.tensor(chosen), torch.tensor(chosen)[:, :1].repeat(1, columns)], dim=1)
    padded_affinity = torch.cat([torch.tensor(affinity), torch.ones(tokens, columns)], dim=1)
    valid = torch.arange(top_k + columns).repeat(tokens, 1) < top_k
    padded = keep(padded_chosen, padded_affinity, torch.tensor(protected), experts, knobs, valid)
    assert torch.equal(padded[:, :top_k], plain)
    assert not padded[:, top_k:].any()


@pytest.mark.parametrize("dropping", ["expert", "device"])
@pytest.mark.parametrize("router", ["top_k", "expert_choice"])
def test_each_run_of_several_has_queues_of_its_own(router, dropping):
    knobs = Knobs(router=router, top_k=2, token_dropping=dropping, capacity_factor=0.6, num_devices=2)
    random = torch.Generator().manual_seed(6)
    routing = route(torch.randn(3, 30, 6, generator=random), torch.zeros(3, 6), knobs)
    affinity_TK = routing.scores_TE.gather(-1, routing.chosen_TK)
    protected_T = torch.rand(3, 30, generator=random) < torch.tensor([[0.0], [0.3], [1.0]])
    kept_TK = keep(routing.chosen_TK, affinity_TK, protected_T, 6, knobs, routing.valid_TK)
    for place in range(3):
        own = routing.twin(place)
        alone = keep(own.chosen_TK, affinity_TK[place], protected_T[place], 6, knobs, own.valid_TK)
        assert torch.equal(kept_TK[place], alone)
    assert kept_TK[1].sum() < kept_TK[2].sum()
