"""Do the bias rules nudge, and the losses weigh, as the equations say when they are read out slowly?"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeviz import balance, strategies
from moeviz.balance import BIAS_RULES, LOSSES, BiasState, added_loss
from moeviz.config import LOSS_WEIGHTS, Knobs
from moeviz.routing import Routing, route
from moeviz.together import merged

BY_LOAD = ("none", "sign", "proportional", "sign_centred", "rms", "multiplicative", "momentum")

# --- bias rules ------------------------------------------------------------------------------------------------------


def after(rule: str, bias: torch.Tensor, load: torch.Tensor, u: float) -> torch.Tensor:
    """The bias after one step of a rule that needs no more than the load."""
    routings = [SimpleNamespace(load_E=row, scores_TE=torch.zeros(0, load.shape[1])) for row in load]
    return BIAS_RULES[rule](BiasState(rule, bias, torch.zeros_like(bias)), routings, Knobs(u=u)).bias_LE


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
    moved = after("sign", torch.tensor(bias), torch.tensor(load), u)
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
        assert torch.equal(after("sign", torch.zeros(1, experts), load, 0.5), torch.zeros(1, experts))


def test_an_overloaded_expert_goes_down_and_an_idle_one_up():
    moved = after("sign", torch.zeros(1, 4), torch.tensor([[8, 4, 0, 4]]), 0.25)
    assert moved.tolist() == [[-0.25, 0.0, 0.25, 0.0]]


def test_layers_do_not_see_each_others_load():
    moved = after("sign", torch.zeros(2, 2), torch.tensor([[1, 3], [90, 10]]), 0.5)
    assert moved.tolist() == [[0.5, -0.5], [-0.5, 0.5]]


@given(st.integers(2, 40), st.sampled_from([2**-10, 2**-3]), st.integers(0, 2**32 - 1))
def test_a_sign_step_moves_each_bias_by_u_or_not_at_all(experts, u, seed):
    """E5, with a bias and a u that binary floats hold exactly."""
    random = np.random.default_rng(seed)
    bias = torch.tensor(random.integers(-64, 64, (1, experts)) * u, dtype=torch.float32)
    load = torch.tensor(random.integers(0, 4, (1, experts)))
    steps = (after("sign", bias, load, u) - bias) / u
    assert set(steps.flatten().tolist()) <= {-1.0, 0.0, 1.0}


def spoken_step(rule: str, load: list[int], u: float) -> list[float]:
    """How far each bias goes, from the paper's formula in double precision; momentum begins at rest."""
    mean = sum(load) / len(load)
    short = [mean - count for count in load]
    if rule == "proportional":
        return [u * x / mean for x in short]
    if rule == "rms":
        rms = math.sqrt(sum(x * x for x in short) / len(short))
        return [u * x / rms if rms else 0.0 for x in short]
    if rule == "momentum":
        steps = [u * math.tanh(2 * x / mean) for x in short]
        return [0.5 * (step - sum(steps) / len(steps)) for step in steps]
    signs = [0 if abs(x) < 1e-9 * mean else math.copysign(1, x) for x in short]
    centre = sum(signs) / len(signs) if rule == "sign_centred" else 0
    return [u * (sign - centre) for sign in signs]


LOADS = st.lists(st.lists(st.integers(0, 50), min_size=5, max_size=5).filter(any), min_size=1, max_size=3)


@pytest.mark.parametrize("rule", [rule for rule in BY_LOAD if rule != "none"])
@given(load=LOADS, u=st.sampled_from([1e-3, 0.25]), seed=st.integers(0, 1000))
def test_every_rule_goes_as_far_as_its_formula_spoken_aloud(rule, load, u, seed):
    bias = torch.randn(len(load), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved = after(rule, bias, torch.tensor(load), u) - bias
    for layer, counts in enumerate(load):
        assert moved[layer].tolist() == pytest.approx(spoken_step(rule, counts, u), abs=1e-6 * u)


@pytest.mark.parametrize("rule", [rule for rule in BY_LOAD if rule != "none"])
def test_a_single_pair_is_a_load_like_any_other(rule):
    moved = after(rule, torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[0, 1, 0, 0]]), 0.5)
    assert moved[0].tolist() == pytest.approx(spoken_step(rule, [0, 1, 0, 0], 0.5))


@pytest.mark.parametrize("rule", ["proportional", "rms", "sign_centred", "momentum"])
@given(load=LOADS, seed=st.integers(0, 1000))
def test_centred_rules_keep_the_sum_of_the_bias(rule, load, seed):
    """E5. The sign rule does not: its biases drift together."""
    bias = torch.randn(len(load), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    after_ten = bias
    for _ in range(10):
        after_ten = after(rule, after_ten, torch.tensor(load), 0.1)
    assert after_ten.sum(-1).tolist() == pytest.approx(bias.sum(-1).tolist(), abs=1e-6)


def test_the_sum_of_the_bias_drifts_under_the_sign_rule():
    drifted = after("sign", torch.zeros(1, 4), torch.tensor([[10, 1, 1, 0]]), 0.1)
    assert float(drifted.sum()) == pytest.approx(0.2)


@pytest.mark.parametrize("rule", BY_LOAD)
def test_zero_tokens_and_perfect_balance_leave_every_bias_as_it_is(rule):
    bias = torch.randn(2, 4) * (rule != "none")
    for load in (torch.zeros(2, 4, dtype=torch.long), torch.full((2, 4), 7)):
        assert torch.equal(after(rule, bias, load, 0.1), bias)


def test_the_momentum_rule_remembers_half_of_its_last_move():
    """Two steps by hand: d = u tanh(2 v) less its mean; m = m/2 + d/2; b += m."""
    load, u = torch.tensor([[6, 2, 0, 0]]), 0.1
    d = u * torch.tanh(2 * (2 - load.double()) / 2)
    d = d - d.mean()
    bias, momentum = balance.momentum_rule(torch.zeros(1, 4), torch.zeros(1, 4), load, u)
    torch.testing.assert_close(momentum.double(), d / 2)
    bias, momentum = balance.momentum_rule(bias, momentum, load, u)
    torch.testing.assert_close(momentum.double(), d / 4 + d / 2)
    torch.testing.assert_close(bias.double(), d / 2 + d / 4 + d / 2)


# --- quantile --------------------------------------------------------------------------------------------------------


def spoken_quantile(bias: list[float], scores: list[list[float]], top_k: int) -> list[float]:
    """The bias that this batch asks for, centred."""
    tokens, experts = len(scores), len(bias)
    thresholds = [sorted((s + b for s, b in zip(row, bias, strict=True)), reverse=True)[top_k] for row in scores]
    wanted = []
    for expert in range(experts):
        above = sorted((row[expert] - a for row, a in zip(scores, thresholds, strict=True)), reverse=True)
        wanted.append(-above[tokens * top_k // experts])
    return [b - sum(wanted) / experts for b in wanted]


@given(st.integers(1, 20), st.integers(2, 8), st.data(), st.sampled_from([0.1, 1.0]), st.integers(0, 1000))
def test_the_quantile_rule_goes_its_share_of_the_way_to_the_bias_spoken_aloud(tokens, experts, data, damping, seed):
    top_k = data.draw(st.integers(1, experts - 1))
    random = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, tokens, experts, generator=random, dtype=torch.float64)
    bias = torch.randn(2, experts, generator=random, dtype=torch.float64)
    moved = balance.quantile_rule(bias, scores, top_k, damping)
    for layer in range(2):
        wanted = spoken_quantile(bias[layer].tolist(), scores[layer].tolist(), top_k)
        expected = [b + damping * (w - b) for b, w in zip(bias[layer].tolist(), wanted, strict=True)]
        assert moved[layer].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("tokens", "top_k"), [(0, 2), (5, 4)])
def test_where_nothing_can_be_chosen_the_quantile_rule_leaves_the_bias(tokens, top_k):
    bias = torch.randn(1, 4)
    assert torch.equal(balance.quantile_rule(bias, torch.rand(1, tokens, 4), top_k, 1.0), bias)


# --- a frozen router: only the bias moves ----------------------------------------------------------------------------


def violations(rule: str, steps: int, **knobs) -> list[float]:
    """MaxVio step by step: 16 experts, K = 2, a fixed sigmoid router with favourites, fresh tokens at every step."""
    random = torch.Generator().manual_seed(0)
    centroids, favour = torch.randn(16, 16, generator=random), torch.randn(16, generator=random)
    settings = Knobs(bias_rule=rule, **knobs)
    state, shown = balance.start(1, 16, rule), []
    for step in range(1, steps + 1):
        logits = 0.25 * torch.randn(2048, 16, generator=random) @ centroids.T + favour
        routing = route(logits, state.bias_LE[0], settings)
        state = balance.update(state, [routing], settings, step)
        shown.append(float(routing.load_E.max() / routing.load_E.float().mean() - 1))
    return shown


def test_the_frozen_router_is_unbalanced_and_stays_so_without_a_rule():
    shown = violations("none", 50)
    assert min(shown) > 2


@pytest.mark.parametrize(
    ("rule", "knobs", "steps", "late"),
    [
        ("sign", {"u": 1e-2}, 120, 0.35),
        ("sign_centred", {"u": 1e-2}, 120, 0.35),
        ("proportional", {"u": 1e-2}, 120, 0.25),
        ("rms", {"u": 1e-2}, 120, 0.35),
        ("momentum", {"u": 5e-3}, 200, 0.25),
        ("multiplicative", {"u": 1e-2}, 200, 0.5),
        ("quantile", {"damping": 1.0}, 8, 0.25),
        ("quantile", {"damping": 0.1}, 80, 0.25),
    ],
)
def test_every_rule_balances_a_frozen_router(rule, knobs, steps, late):
    shown = violations(rule, steps, **knobs)
    assert shown[0] > 2
    assert np.mean(shown[steps // 2 :]) < late


def test_quantile_balancing_undamped_takes_two_or_three_steps():
    assert max(violations("quantile", 10, damping=1.0)[4:]) < 0.3


def test_a_bias_that_runs_the_wrong_way_ends_in_collapse():
    """The negative control: the same rule with its sign flipped. A balanced router ends with dead experts."""
    random = torch.Generator().manual_seed(0)
    logits, bias = torch.randn(512, 16, generator=random), torch.zeros(1, 16)
    for _ in range(300):
        load = route(logits, bias[0], Knobs()).load_E
        bias = 2 * bias - balance.sign_rule(bias, load[None], 1e-2)
    assert int(route(logits, torch.zeros(16), Knobs()).load_E.min()) > 20
    assert int((load == 0).sum()) >= 8


# --- what a rule leaves behind ---------------------------------------------------------------------------------------


def a_batch(layers: int = 2, experts: int = 8) -> list[Routing]:
    random = torch.Generator().manual_seed(1)
    return [route(torch.randn(40, experts, generator=random), torch.zeros(experts), Knobs()) for _ in range(layers)]


def a_state(rule: str) -> BiasState:
    random = torch.Generator().manual_seed(2)
    bias, momentum = torch.randn(2, 8, generator=random), 0.1 * torch.randn(2, 8, generator=random)
    return BiasState(rule, bias, momentum if rule == "momentum" else 0 * momentum)


def same(one: BiasState, other: BiasState) -> bool:
    return torch.equal(one.bias_LE, other.bias_LE) and torch.equal(one.momentum_LE, other.momentum_LE)


MOVING = [rule for rule in BIAS_RULES if rule != "none"]


@pytest.mark.parametrize("rule", MOVING)
def test_speed_zero_freezes_the_bias_and_what_the_rule_remembers(rule):
    state = a_state(rule)
    still = {"damping": 0.0} if rule == "quantile" else {"u": 0.0}
    assert same(balance.update(state, a_batch(), Knobs(bias_rule=rule, **still), 1), state)
    assert not same(balance.update(state, a_batch(), Knobs(bias_rule=rule), 1), state)


@pytest.mark.parametrize("rule", MOVING)
def test_after_its_last_step_a_bias_keeps_its_values(rule):
    state, knobs = a_state(rule), Knobs(bias_rule=rule, freeze_after=30)
    for step, moves in ((1, True), (30, True), (31, False), (500, False)):
        assert same(balance.update(state, a_batch(), knobs, step), state) is not moves
    assert not same(balance.update(state, a_batch(), replace(knobs, freeze_after=0), 500), state)


@pytest.mark.parametrize("router", ["hash", "expert_choice"])
@pytest.mark.parametrize("rule", MOVING)
def test_a_bias_rests_where_it_does_not_act(rule, router):
    state = a_state(rule)
    assert same(balance.update(state, a_batch(), Knobs(bias_rule=rule, router=router), 1), state)


@pytest.mark.parametrize("new", BIAS_RULES)
@pytest.mark.parametrize("old", BIAS_RULES)
def test_additive_rules_take_over_each_others_bias_and_a_factor_starts_at_one(old, new):
    state = a_state(old)
    went_on = balance.under(state, new)
    assert went_on.rule == new
    if old == new:
        assert same(went_on, state)
    elif "none" in (old, new) or "multiplicative" in (old, new):
        assert went_on.bias_LE.tolist() == [[1.0 if new == "multiplicative" else 0.0] * 8] * 2
    else:
        assert torch.equal(went_on.bias_LE, state.bias_LE)
    if old != new:
        assert not went_on.momentum_LE.any(), "momentum of another rule is not carried over"


@pytest.mark.parametrize("rule", BIAS_RULES)
def test_a_rule_leaves_the_bias_it_was_given_as_it_was(rule):
    state = a_state(rule)
    before = BiasState(rule, state.bias_LE.clone(), state.momentum_LE.clone())
    moved = balance.update(state, a_batch(), Knobs(bias_rule=rule), 1)
    assert same(state, before)
    assert moved.bias_LE.dtype == torch.float32
    assert not moved.bias_LE.requires_grad


def test_a_bias_that_may_learn_for_one_step_rests_from_the_second_on():
    state, knobs = a_state("sign"), Knobs(bias_rule="sign", freeze_after=1)
    moves = [not same(balance.update(state, a_batch(), knobs, step), state) for step in (1, 2, 3)]
    assert moves == [True, False, False]


def test_quantile_balancing_has_a_damping_and_no_speed():
    """u belongs to the rules that step; a u of 0 must not stop the one that has none."""
    state, knobs = a_state("quantile"), Knobs(bias_rule="quantile")
    moved, without_speed = (balance.update(state, a_batch(), at, 1) for at in (knobs, replace(knobs, u=0.0)))
    assert same(moved, without_speed)
    assert not same(moved, state)


def test_from_step_to_step_momentum_is_not_forgotten():
    """Under the same load the second move is m/2 + d/2 with m = d/2: half as long again as the first."""
    knobs, places = Knobs(bias_rule="momentum"), [balance.start(2, 8, "momentum")]
    for step in (1, 2):
        places.append(balance.update(places[-1], a_batch(), knobs, step))
    first, second = places[1].bias_LE - places[0].bias_LE, places[2].bias_LE - places[1].bias_LE
    assert first.abs().max() > 0
    torch.testing.assert_close(second, 1.5 * first)


def test_a_bias_lies_on_the_device_it_was_started_on_under_any_rule():
    """`meta` stands for any device that is not the default one."""
    state = balance.start(2, 8, "sign", "meta")
    for moved in (state, *(balance.under(state, rule) for rule in BIAS_RULES)):
        assert moved.bias_LE.device.type == moved.momentum_LE.device.type == "meta"


def test_no_rule_means_no_bias():
    assert not balance.update(a_state("sign"), a_batch(), Knobs(), 1).bias_LE.any()


def test_there_is_a_function_for_every_choice_and_no_other():
    assert tuple(BIAS_RULES) == tuple(strategies.BIAS_RULES)
    assert tuple(LOSSES) == tuple(strategies.LOSSES)


# --- losses ----------------------------------------------------------------------------------------------------------


def spoken_loss(scores: list[list[float]], chosen: list[list[int]]) -> float:
    """sum over experts of f_i P_i over these tokens: how often chosen, times how much wanted."""
    tokens, experts = len(scores), len(scores[0])
    pairs, total = sum(len(row) for row in chosen), 0.0
    for expert in range(experts):
        count = sum(row.count(expert) for row in chosen)
        f = experts * count / pairs if pairs else 0.0  # pairs = K T where every token has K
        P = sum(row[expert] / sum(row) for row in scores) / tokens
        total += f * P
    return total


def spoken_top(row: list[float], top_k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda expert: -row[expert])[:top_k]


def spoken_communication(scores: list[list[float]], chosen: list[list[int]], knobs: Knobs) -> float:
    tokens, experts, devices = len(scores), len(scores[0]), knobs.num_devices
    size, total = experts // devices, 0.0
    reachable = knobs.groups_kept if knobs.num_groups == devices and knobs.router == "top_k" else devices
    most = min(reachable, knobs.top_k)
    for device in range(devices):
        mine = range(device * size, device * size + size)
        reach = sum(1 for row in chosen if any(expert in mine for expert in row))
        P = sum(sum(row[expert] for expert in mine) / sum(row) for row in scores) / tokens
        total += devices / (most * tokens) * reach * P
    return total


def spoken_device(scores: list[list[float]], chosen: list[list[int]], knobs: Knobs) -> float:
    tokens, experts = len(scores), len(scores[0])
    size, pairs, total = experts // knobs.num_devices, sum(len(row) for row in chosen), 0.0
    for device in range(knobs.num_devices):
        mine = range(device * size, device * size + size)
        f = sum(experts * sum(row.count(expert) for row in chosen) / pairs for expert in mine) / size
        P = sum(sum(row[expert] for expert in mine) / sum(row) for row in scores) / tokens
        total += f * P
    return total


def spoken_of(loss: str, routing: Routing, knobs: Knobs, sequences: int) -> float:
    scores = routing.scores_TE.tolist()
    real = torch.ones_like(routing.chosen_TK, dtype=torch.bool) if routing.valid_TK is None else routing.valid_TK
    chosen = [row[keep].tolist() for row, keep in zip(routing.chosen_TK, real, strict=True)]
    length = len(scores) // sequences
    parts = [slice(start, start + length) for start in range(0, len(scores), length)]
    if loss == "batch":
        return spoken_loss(scores, chosen)
    if loss == "switch":
        return spoken_loss(scores, [row[:1] for row in chosen])
    if loss == "gshard":
        return sum(spoken_loss(scores[part], [row[:1] for row in chosen[part]]) for part in parts) / sequences
    if loss == "sequence":
        if knobs.router != "expert_choice":
            chosen = [spoken_top(row, knobs.top_k) for row in scores]
        return sum(spoken_loss(scores[part], chosen[part]) for part in parts) / sequences
    if loss == "device":
        return spoken_device(scores, chosen, knobs)
    if loss == "communication":
        return spoken_communication(scores, chosen, knobs)
    squares = [math.log(sum(math.exp(logit) for logit in row)) ** 2 for row in routing.logits_TE.tolist()]
    return sum(squares) / len(squares)


def spoken_added(routings: list[Routing], knobs: Knobs, sequences: int) -> float:
    """Each loss in each layer, averaged over layers, times its own weight."""
    return sum(
        getattr(knobs, weight) * sum(spoken_of(loss, routing, knobs, sequences) for routing in routings) / len(routings)
        for loss, weight in LOSS_WEIGHTS.items()
        if getattr(knobs, weight)
    )


WEIGHTS = st.sampled_from([0.0, 0.0, 1e-4, 0.1, 1.0, 10.0])


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
        **{weight: draw(WEIGHTS) for weight in LOSS_WEIGHTS.values()},
        gating=draw(st.sampled_from(tuple(strategies.AFFINITIES))),
        router=draw(st.sampled_from(tuple(strategies.ROUTERS))),
        num_groups=groups,
        groups_kept=kept,
        num_devices=draw(st.sampled_from([groups, 1, experts])),
        top_k=draw(st.integers(1, kept * size)),
    )
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    routings = []
    for _ in range(draw(st.integers(1, 3))):
        logits = 2 * torch.randn(sequences * length, experts, generator=random, dtype=torch.float64)
        bias = torch.randn(experts, generator=random, dtype=torch.float64)
        routings.append(route(logits, bias, knobs, torch.randint(0, 256, (sequences * length,), generator=random)))
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


BALANCE_LOSSES = [loss for loss in LOSSES if loss != "z"]


@pytest.mark.parametrize("loss", ["batch", "switch", "device"])
def test_the_relative_counts_f_sum_to_the_number_of_experts(loss):
    """E2. With all experts chosen f is 1 for each, and the loss is the sum of P, which is 1."""
    everyone = a_routing(Knobs(top_k=8))
    if loss != "switch":
        assert float(LOSSES[loss](everyone, 1, Knobs(top_k=8))) == pytest.approx(1.0)
    routing = a_routing(Knobs(top_k=3), bias=torch.linspace(-1, 1, 8))
    uniform = replace(routing, scores_TE=torch.full_like(routing.scores_TE, 0.37))
    assert float(LOSSES[loss](uniform, 1, Knobs(top_k=3))) == pytest.approx(1.0), "uniform P costs sum f / E"


@pytest.mark.parametrize("loss", [loss for loss in BALANCE_LOSSES if loss != "communication"])
@pytest.mark.parametrize("gating", strategies.AFFINITIES)
def test_uniform_affinities_cost_exactly_alpha_however_uneven_the_load(loss, gating):
    """E2: the bias sends every token to the same two experts, and the loss does not see it."""
    knobs = Knobs(**{LOSS_WEIGHTS[loss]: 0.3}, gating=gating)
    routing = a_routing(knobs, logits=torch.zeros(24, 8), bias=torch.tensor([9.0, 8.0, 0, 0, 0, 0, 0, 0]))
    assert routing.load_E.tolist() == [24, 24, 0, 0, 0, 0, 0, 0]
    assert float(added_loss([routing], knobs, 4)) == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize("loss", BALANCE_LOSSES)
def test_perfect_balance_costs_alpha_and_less_than_collapse(loss):
    knobs = Knobs(**{LOSS_WEIGHTS[loss]: 1.0}, top_k=1)
    balanced = a_routing(knobs, logits=6 * torch.eye(8).repeat(3, 1))
    collapsed = a_routing(knobs, logits=6 * torch.eye(8)[:1].repeat(24, 1))
    assert float(added_loss([balanced], knobs, 3)) == pytest.approx(1.0, rel=1e-5)
    assert float(added_loss([collapsed], knobs, 3)) > 1.2


@pytest.mark.parametrize(
    ("knobs", "routes"),
    [
        # Four devices of two experts. Each token reaches both of the two devices it may reach.
        (Knobs(num_groups=4, groups_kept=2, top_k=4), [[0, 1, 2, 3], [4, 5, 6, 7], [2, 3, 4, 5], [6, 7, 0, 1]]),
        (Knobs(top_k=2), [[0, 2], [4, 6], [1, 5], [3, 7]]),  # no limit: two experts reach two devices at most
        (Knobs(top_k=8), [list(range(8))] * 4),
    ],
)
def test_when_every_token_reaches_all_devices_it_may_and_all_devices_alike_communication_costs_one(knobs, routes):
    routing = replace(a_routing(knobs, tokens=4), chosen_TK=torch.tensor(routes))
    assert float(LOSSES["communication"](routing, 1, knobs)) == pytest.approx(1.0)


def test_communication_counts_a_token_once_per_device_and_device_work_counts_every_pair():
    knobs = Knobs(top_k=2)
    # All affinity lies on the first device; its two experts serve one token twice, the others are spread.
    logits = torch.tensor([[9.0, 9.0, -9, -9, -9, -9, -9, -9]]).repeat(4, 1)
    twice = replace(a_routing(knobs, logits=logits), chosen_TK=torch.tensor([[0, 1], [2, 4], [2, 4], [2, 6]]))
    once = replace(twice, chosen_TK=torch.tensor([[0, 6], [2, 4], [2, 4], [2, 6]]))
    communication = [float(LOSSES["communication"](routing, 1, knobs)) for routing in (twice, once)]
    assert communication == pytest.approx([4 / (2 * 4)] * 2, rel=1e-3)
    loads = [torch.bincount(routing.chosen_TK.flatten(), minlength=8) for routing in (twice, once)]
    work = [float(LOSSES["device"](replace(twice, load_E=load), 1, knobs)) for load in loads]
    assert work == pytest.approx([2 * 4 / 8, 1 * 4 / 8], rel=1e-3)


@pytest.mark.parametrize("loss", BALANCE_LOSSES)
def test_the_gradient_flows_through_p_alone_with_f_as_constants(loss):
    """The loss is linear in the affinities' shares: the same loss with f held fixed has the same gradient."""
    knobs = Knobs(**{LOSS_WEIGHTS[loss]: 0.7}, num_devices=3)
    logits = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    routing = a_routing(knobs, experts=6, logits=logits)
    added_loss([routing], knobs, 3).backward()
    gradient, logits.grad = logits.grad, None
    nudge = 1e-6
    for token, expert in ((0, 0), (5, 3), (11, 5)):
        ends = []
        for sign in (1, -1):
            moved = logits.detach().clone()
            moved[token, expert] += sign * nudge
            ends.append(spoken_of(loss, replace(routing, scores_TE=moved.sigmoid()), knobs, 3))
        assert float(gradient[token, expert]) == pytest.approx(0.7 * (ends[0] - ends[1]) / (2 * nudge), abs=1e-8)
    assert gradient.abs().max() > 1e-4


def test_the_sequence_loss_counts_the_unbiased_choice_without_groups_and_the_batch_loss_the_real_one():
    knobs = Knobs(num_groups=4, groups_kept=1)
    logits = torch.randn(24, 8, generator=torch.Generator().manual_seed(5))
    plain = a_routing(Knobs(), logits=logits)
    steered = a_routing(knobs, logits=logits, bias=torch.linspace(-2, 2, 8))
    assert not torch.equal(plain.load_E, steered.load_E)
    sequence, batch = LOSSES["sequence"], LOSSES["batch"]
    assert float(sequence(steered, 4, knobs)) == float(sequence(plain, 4, knobs))
    assert float(batch(steered, 4, knobs)) != pytest.approx(float(batch(plain, 4, knobs)), rel=1e-3)


@pytest.mark.parametrize(("one", "other"), [("sequence", "batch"), ("gshard", "switch")])
def test_over_one_sequence_and_without_bias_both_scopes_agree(one, other):
    routing = a_routing(Knobs())
    assert float(LOSSES[one](routing, 1, Knobs())) == pytest.approx(float(LOSSES[other](routing, 1, Knobs())), rel=1e-6)


@pytest.mark.parametrize(("inner", "outer"), [("sequence", "batch"), ("gshard", "switch")])
def test_sequences_that_are_each_one_sided_cost_more_than_their_balanced_batch(inner, outer):
    knobs = Knobs(top_k=1)
    logits = 6 * torch.eye(4).repeat_interleave(5, dim=0)  # sequence n wants expert n alone
    routing = a_routing(knobs, experts=4, logits=logits)
    assert float(LOSSES[outer](routing, 4, knobs)) == pytest.approx(1.0, rel=1e-4)
    assert float(LOSSES[inner](routing, 4, knobs)) > 1.5


def test_losses_of_the_first_choice_do_not_see_the_second():
    logits = torch.tensor([[3.0, 2.0, 0, 0], [0, 3.0, 2.0, 0], [0, 0, 3.0, 2.0], [2.0, 0, 0, 3.0]])
    knobs = Knobs()
    routing = a_routing(knobs, logits=logits, experts=4)
    other = replace(routing, chosen_TK=torch.stack([routing.chosen_TK[:, 0], routing.chosen_TK[:, 0]], dim=1))
    for loss in ("switch", "gshard"):
        assert float(LOSSES[loss](routing, 2, knobs)) == float(LOSSES[loss](other, 2, knobs))


def test_the_z_loss_can_be_lowered_without_any_better_balance():
    logits = torch.randn(24, 8, generator=torch.Generator().manual_seed(5)) + 2
    large, small = a_routing(Knobs(), logits=logits), a_routing(Knobs(), logits=0.1 * logits)
    assert torch.equal(large.load_E, small.load_E)
    assert float(LOSSES["z"](small, 1, Knobs())) < float(LOSSES["z"](large, 1, Knobs()))


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_zero_add_nothing_and_two_losses_add_up(loss):
    routing = a_routing(Knobs(), logits=torch.randn(12, 8))
    none = added_loss([routing], Knobs(), 3)
    assert float(none) == 0.0
    assert not added_loss([a_routing(Knobs(), logits=torch.randn(12, 8, requires_grad=True))], Knobs(), 3).requires_grad
    alone, beside = {LOSS_WEIGHTS[loss]: 0.5}, {"alpha": 0.25} if loss != "batch" else {"alpha_z": 0.25}
    one, other, both = (
        float(added_loss([routing], Knobs(**weights), 3)) for weights in (alone, beside, alone | beside)
    )
    assert both == pytest.approx(one + other)


@pytest.mark.parametrize("loss", BALANCE_LOSSES)
@pytest.mark.parametrize("gating", strategies.AFFINITIES)
def test_logits_of_any_size_cost_a_finite_loss(loss, gating):
    knobs = Knobs(**{LOSS_WEIGHTS[loss]: 0.1}, gating=gating)
    for size in (1e38, -1e38, -50.0):  # at -50 affinities are near what is added to their sum
        logits = torch.full((8, 4), size).requires_grad_()
        added = added_loss([a_routing(knobs, experts=4, logits=logits)], knobs, 2)
        added.backward()
        assert added.isfinite()
        assert added >= 0
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("router", ["top_k", "expert_choice"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_without_tokens_costs_nothing(loss, router):
    """The mean of nothing is 0 here, not NaN, and no warning is given (which would be an error in these tests)."""
    knobs = Knobs(**{LOSS_WEIGHTS[loss]: 0.5}, router=router, num_devices=2, num_groups=2)
    for runs in ((), (3,)):
        logits = torch.zeros(*runs, 0, 8, requires_grad=True)
        added = added_loss([route(logits, torch.zeros(*runs, 8), knobs)], knobs, 4)
        assert added.tolist() == (0.0 if not runs else [0.0] * 3)
        added.sum().backward()
        assert logits.grad.shape == logits.shape


# --- twins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("router", ["top_k", "expert_choice"])
@pytest.mark.parametrize("loss", LOSSES)
def test_runs_together_have_the_losses_that_each_has_alone(loss, router):
    random = torch.Generator().manual_seed(7)
    logits, knobs = torch.randn(3, 24, 8, generator=random), Knobs(router=router, num_devices=2, num_groups=2)
    both = route(logits, torch.randn(3, 8, generator=random), knobs)
    together = LOSSES[loss](both, 4, knobs)
    assert together.shape == (3,)
    for place in range(3):
        assert float(together[place]) == pytest.approx(float(LOSSES[loss](both.twin(place), 4, knobs)), rel=1e-6)


def test_runs_together_add_each_its_own_weight_of_a_loss():
    random = torch.Generator().manual_seed(8)
    layers = [route(torch.randn(2, 24, 8, generator=random), torch.zeros(2, 8), Knobs()) for _ in range(2)]
    both = added_loss(layers, merged([Knobs(alpha=0.1), Knobs(alpha_z=2.0)], "cpu"), 4)
    assert added_loss(layers, merged([Knobs(), Knobs()], "cpu"), 4).tolist() == [0, 0]
    for place, knobs in enumerate((Knobs(alpha=0.1), Knobs(alpha_z=2.0))):
        alone = added_loss([layer.twin(place) for layer in layers], knobs, 4)
        assert float(both[place]) == pytest.approx(float(alone), rel=1e-6)
