"""Is a run among twins the run that it is alone?"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from moeviz import metrics, training, truth
from moeviz.config import LOSS_WEIGHTS, Knobs, Recipe, SettingsError, check
from moeviz.engine import EVAL_EVERY, MAX_TWINS, Engine, TrainingDiverged, Twins
from moeviz.snapshot import ALONE, Snapshot
from moeviz.together import groups_of
from tests import golden
from tests.test_engine import assert_same_run

SMALL = Recipe(device="cpu", num_experts=8, d_model=16, d_expert=12, tokens_per_step=256, sequence_length=16)
TEXT = replace(SMALL, task="text", num_layers=2, shared_experts=1, mtp_depth=1)
SIGN = Knobs(bias_rule="sign", u=0.01)
# What people would compare: one setting differs from twin to twin.
SPEEDS = [Knobs(), SIGN, replace(SIGN, u=0.1), replace(SIGN, u=0.0)]
WEIGHTS = [Knobs(alpha=alpha) for alpha in (0.0, 0.01, 0.1, 10.0)]
ROUTERS = [Knobs(), Knobs(gating="softmax"), Knobs(router="expert_choice"), Knobs(router="hash")]
COUNTS = [Knobs(top_k=1), Knobs(top_k=4), Knobs(top_k=3, norm_topk=False, route_scale=2.5), Knobs()]
LIMITS = [
    Knobs(num_groups=4, groups_kept=2),
    Knobs(token_dropping="expert", capacity_factor=1.0),
    Knobs(token_dropping="expert", capacity_factor=1.0, protected_share=0.6),
    Knobs(token_dropping="device", capacity_factor=0.6, num_devices=2),
]
RULES = [
    Knobs(bias_rule="momentum", u=0.01),
    Knobs(bias_rule="quantile", damping=0.5),
    Knobs(bias_rule="multiplicative", u=0.01),
    Knobs(bias_rule="rms", u=0.01, alpha_device=0.1, alpha_z=1e-3, learning_rate=1e-2),
]
ONE_RULE = [replace(RULES[0], u=u, freeze_after=freeze) for u, freeze in ((0.001, 0), (0.01, 0), (0.1, 0), (0.1, 0))]
FAMILIES = {
    "u": SPEEDS,
    "alpha": WEIGHTS,
    "router": ROUTERS,
    "top_k": COUNTS,
    "groups and drops": LIMITS,
    "rules": RULES,
    "one rule": ONE_RULE,
    "further ahead": [replace(SIGN, mtp_weight=weight) for weight in (0.0, 0.3, 1.0)],
}


def text_of(recipe: Recipe) -> bytes | None:
    return golden.TEXT if recipe.task == "text" else None


def together(recipe: Recipe, schedule: list[list[Knobs]]) -> list[list[Snapshot]]:
    """Each twin's snapshots, the untrained model first."""
    twins = Twins(recipe, schedule[0], text_of(recipe))
    shots = [twins.observe()] + [twins.step(knobs) for knobs in schedule]
    return [list(own) for own in zip(*shots, strict=True)]


def alone(recipe: Recipe, schedule: list[Knobs]) -> list[Snapshot]:
    engine = Engine(recipe, schedule[0], text_of(recipe))
    return [engine.observe()] + [engine.step(knobs) for knobs in schedule]


@pytest.mark.exact
@pytest.mark.parametrize("recipe", [SMALL, TEXT], ids=["skills", "text"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_twin_is_to_the_bit_the_same_run_alone(family, recipe, monkeypatch):
    """Past an evaluation and a probe, with knobs that change on the way. A step of the text task takes five times as
    long: there both come sooner."""
    often = 9 if recipe is TEXT else EVAL_EVERY
    monkeypatch.setattr(training, "EVAL_EVERY", often)
    knobs = FAMILIES[family]
    knobs = [replace(own, probe_every=7) for own in knobs]
    schedule = [knobs] * 8 + [knobs[1:] + knobs[:1]] * (often - 6)
    for place, own in enumerate(together(recipe, schedule)):
        assert_same_run(own, alone(recipe, [step[place] for step in schedule]))


@st.composite
def any_twins(draw):
    """A small recipe and the knobs of two or three twins."""
    recipe = replace(
        SMALL,
        num_experts=draw(st.sampled_from([2, 3, 6, 12])),
        d_model=draw(st.sampled_from([4, 12, 20])),
        num_layers=draw(st.integers(1, 2)),
        tokens_per_step=draw(st.sampled_from([34, 96])),
        sequence_length=2,
        seed=draw(st.integers(0, 99)),
    )
    twins = []
    for _ in range(draw(st.integers(2, 3))):
        chosen = {
            name: draw(st.sampled_from(Knobs.__dataclass_fields__[name].metadata["choices"]))
            for name in ("gating", "router", "bias_rule", "token_dropping")
        }
        losses = draw(st.lists(st.sampled_from(sorted(LOSS_WEIGHTS.values())), max_size=2))
        rest = {"top_k": draw(st.integers(1, 2)), "num_devices": 1, "u": draw(st.sampled_from([0.0, 0.01]))}
        twins.append(Knobs(**chosen, **rest, **dict.fromkeys(losses, 0.1)))
        check(recipe, twins[-1])
    return recipe, twins


@pytest.mark.exact
@settings(max_examples=settings.default.max_examples * 5 // 8)
@given(any_twins())
def test_any_twins_are_to_the_bit_the_same_runs_alone(example):
    recipe, knobs = example
    schedule = [knobs] * 4
    for place, own in enumerate(together(recipe, schedule)):
        assert_same_run(own, alone(recipe, [knobs[place]] * 4))


def test_each_twin_is_to_rounding_the_same_run_alone():
    """What holds on every machine: until rounding alone moves a token, a few steps."""
    for place, own in enumerate(together(TEXT, [SPEEDS] * 3)):
        for one, other in zip(own, alone(TEXT, [SPEEDS[place]] * 3), strict=True):
            assert one.task_loss == pytest.approx(other.task_loss, rel=1e-4)
            assert np.abs(one.load_LE - other.load_LE).sum() <= 0.02 * one.load_LE.sum()


def test_twins_begin_with_equal_weights_and_part_where_their_knobs_act():
    first, second = together(SMALL, [[SIGN, replace(SIGN, u=0.1)]] * 3)
    assert_same_run(first[:2], second[:2])  # the first step's bias is still 0 in both
    assert first[2].load_LE.tolist() != second[2].load_LE.tolist()


def test_settings_that_only_scale_something_share_one_pass():
    assert len(groups_of(SPEEDS, "cpu")) == len(groups_of(WEIGHTS, "cpu")) == 1
    assert len(groups_of([*SPEEDS, *WEIGHTS, Knobs(learning_rate=0.1, probe_every=0)], "cpu")) == 1
    assert [group.runs for group in groups_of([Knobs(), Knobs(top_k=3), SIGN], "cpu")] == [[0, 2], [1]]
    assert len(groups_of([SIGN, replace(SIGN, bias_rule="multiplicative")], "cpu")) == 2


@pytest.mark.parametrize("knobs", [SPEEDS, COUNTS], ids=["one group", "groups that differ in K"])
def test_all_experts_of_all_twins_are_one_grouped_product(knobs):
    """Two forwards and three backwards (the data need no gradient), for one run and for four."""
    twins = Twins(SMALL, knobs)
    twins.step(knobs)
    with mock.patch.object(torch.nn.functional, "grouped_mm", wraps=torch.nn.functional.grouped_mm) as product:
        twins.step(knobs)
    pairs = sum(own.top_k for own in knobs) * SMALL.tokens_per_step
    assert sum(pairs in call.args[0].shape for call in product.call_args_list) == 5


class Questions(TorchDispatchMode):
    """Counts what makes an accelerator wait: a value asked for, or a size that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "is_nonzero"):
            self.asked[name] += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("recipe", [replace(SMALL, num_layers=2), TEXT], ids=["skills", "text"])
@pytest.mark.parametrize("knobs", [*SPEEDS, *WEIGHTS[1:], ROUTERS[1], ROUTERS[3], *LIMITS, *RULES])
def test_a_step_asks_for_no_value_before_its_one_look(recipe, knobs):
    engine = Engine(recipe, knobs, text_of(recipe))
    batch = engine.task.batch(engine._data)
    engine.task.batch = lambda generator: batch
    look, before = engine._look, []

    def counted(*given):
        before.append(dict(questions.asked))
        return look(*given)

    engine._look = counted
    with Questions() as questions:
        engine.step(knobs)
    assert before == [{}]


@pytest.mark.exact
def test_a_twin_that_diverges_stops_alone_says_so_and_can_go_on():
    knobs = [SIGN, SIGN, replace(SIGN, u=0.1)]
    twins = Twins(SMALL, knobs)
    for _ in range(3):
        twins.step(knobs)
    good = [weight.detach().clone() for weight in twins.runs[1].weights]
    with torch.no_grad():
        twins.model.head.weight[1].fill_(math.nan)
    for _ in range(2):
        shots = twins.step(knobs)
        assert isinstance(shots[1], TrainingDiverged)
        assert str(shots[1]).startswith("Training diverged at step ")
    slower = [SIGN, replace(SIGN, learning_rate=1e-3), knobs[2]]
    again = [twins.step(slower) for _ in range(3)]
    assert [shot.step for shot in again[-1]] == [8, 8, 8]
    assert all(math.isfinite(shot.task_loss) for shot in again[-1])
    assert all(weight.isfinite().all() for weight in twins.runs[1].weights)
    assert any(not torch.equal(old, new) for old, new in zip(good, twins.runs[1].weights, strict=True))
    for place in (0, 2):  # the others never noticed
        assert_same_run([again[-1][place]], alone(SMALL, [knobs[place]] * 8)[-1:])


def test_the_optimizer_leaves_a_diverged_twin_alone():
    knobs = [SIGN, SIGN]
    twins = Twins(SMALL, knobs)
    twins.step(knobs)
    with torch.no_grad():
        twins.model.head.weight[0].fill_(math.nan)
    before = [weight.detach().clone() for weight in twins.runs[0].weights]
    bias = twins.runs[0].bias
    twins.step(knobs)
    for old, new in zip(before, twins.runs[0].weights, strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0, equal_nan=True)
    assert twins.runs[0].bias is bias
    assert twins.runs[1].bias is not bias


@pytest.mark.exact
def test_knobs_that_one_twin_cannot_have_change_no_twin():
    twins = Twins(SMALL, [SIGN, SIGN])
    twins.step([SIGN, SIGN])
    with pytest.raises(SettingsError, match="top_k=9"):
        twins.step([replace(SIGN, u=0.5), Knobs(top_k=9)])
    own = twins.step([SIGN, SIGN])
    for shot in own:
        assert_same_run([shot], alone(SMALL, [SIGN] * 2)[-1:])


def test_too_many_twins_are_refused_with_a_remedy():
    with pytest.raises(SettingsError, match=r"0 twins .* Choose 1 to 8"):
        Twins(SMALL, [])
    with pytest.raises(SettingsError, match="9 twins"):
        Twins(SMALL, [SIGN] * (MAX_TWINS + 1))
    large = Recipe(device="cpu", num_experts=256, d_model=128, d_expert=128)
    with pytest.raises(SettingsError, match=r"2 twins .* Choose at most 1 twins"):
        Twins(large, [SIGN] * 2)


def test_the_identities_are_checked_for_each_twin():
    knobs = [SIGN, Knobs(gating="softmax"), Knobs(num_groups=4, groups_kept=2), Knobs(token_dropping="expert")]
    twins = Twins(SMALL, knobs)
    twins.wants_truth = True
    with mock.patch.object(truth, "check", wraps=truth.check) as spy:
        twins.step(knobs)
    assert [call.args[3] for call in spy.call_args_list] == knobs
    for run in twins.runs:
        assert [identity.name for identity in run.truth if identity.holds is False] == []
    assert twins.runs[2].truth != twins.runs[0].truth


# --- where their routing parts ---------------------------------------------------------------------------------------


def step_and_experts(twins: Twins, knobs: list[Knobs]) -> tuple[list[Snapshot], list[list[set[tuple[int, int]]]]]:
    """A step, and by the rule spoken aloud: for each twin and token the (layer, expert) pairs it went to."""
    passes, hidden = [], twins.model.hidden
    with mock.patch.object(twins.model, "hidden", lambda *a, **k: passes.append(hidden(*a, **k)) or passes[-1]):
        shots = twins.step(knobs)
    found = []
    for run in twins.runs:
        experts: list[set[tuple[int, int]]] = [set() for _ in range(twins.recipe.tokens_per_step)]
        for layer, routing in enumerate(twins._routings(run, passes[0][1])):
            for token, chosen in enumerate(routing.chosen_TK.tolist()):
                valid = [True] * len(chosen) if routing.valid_TK is None else routing.valid_TK[token].tolist()
                experts[token] |= {(layer, expert) for expert, real in zip(chosen, valid, strict=True) if real}
        found.append(experts)
    return shots, found


@pytest.mark.parametrize("recipe", [SMALL, TEXT], ids=["skills", "text"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_that_twins_route_differently_are_counted(family, recipe):
    knobs = FAMILIES[family]
    twins = Twins(recipe, knobs, text_of(recipe))
    for _ in range(4):
        (first, *shots), (base, *others) = step_and_experts(twins, knobs)
        assert first.apart == ALONE
        for shot, theirs in zip(shots, others, strict=True):
            apart = [token for token, (own, other) in enumerate(zip(base, theirs, strict=True)) if own != other]
            assert shot.apart.routed_differently == len(apart) / recipe.tokens_per_step
            assert shot.apart.first_token == (apart[0] if apart else -1)


def test_the_order_of_a_tokens_experts_is_no_difference():
    """A selection bias may turn first and second around: the same experts serve the token."""
    taken = [metrics.taken(np.array([[2, 0], [1, 3]]), 4), metrics.taken(np.array([[0, 2], [1, 2]]), 4)]
    share, first = metrics.routed_differently(taken[0][None], taken[1][None])
    assert (share, first) == (0.5, 1)
    assert metrics.routed_differently(taken[0][None], taken[0][None]) == (0.0, -1)


def test_a_run_alone_has_nothing_to_part_from():
    assert Engine(SMALL, Knobs()).step(Knobs()).apart == ALONE
    assert math.isnan(ALONE.routed_differently)


def test_twins_are_the_same_to_the_bit_until_their_difference_acts():
    """Speeds of the bias: step 1 is chosen with biases that are still zero, step 2 is not."""
    twins = Twins(SMALL, [Knobs(), SIGN])
    shots = [twins.observe(), twins.step([Knobs(), SIGN]), twins.step([Knobs(), SIGN])]
    for base, other in shots[:2]:
        assert_same_run([base], [other])
        assert other.apart.routed_differently == 0.0
    assert shots[2][1].apart.routed_differently > 0
