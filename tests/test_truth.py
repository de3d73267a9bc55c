"""Do the identities hold on real batches under any settings, and does each go red when its rule is broken?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeviz import balance, capacity, metrics, model, presets, routing, truth
from moeviz.config import LOSS_WEIGHTS, Knobs, Recipe, settle
from moeviz.engine import EVAL_EVERY, Engine
from moeviz.host.block import TRUTH_BYTES

SMALL = Recipe(num_experts=8, d_model=16, d_expert=8, tokens_per_step=128, sequence_length=16)
TWO_LAYERS = replace(SMALL, num_layers=2)
GROUPED = Knobs(bias_rule="sign", u=0.01, num_groups=4, groups_kept=2)
DROPPING = replace(GROUPED, token_dropping="expert", capacity_factor=0.75)
NAMES = [f"E{number}" for number in range(1, 9)]


def trained(knobs: Knobs, recipe: Recipe = SMALL, steps: int = 3) -> Engine:
    """An engine that checks at every step."""
    engine = Engine(recipe, knobs)
    engine.wants_truth = True
    for _ in range(steps):
        engine._unchecked = True
        engine.step(knobs)
    return engine


def evidence(knobs: Knobs, recipe: Recipe = SMALL) -> tuple:
    """What `truth.check` is called with at the third step."""
    with mock.patch.object(truth, "check", wraps=truth.check) as spy:
        trained(knobs, recipe)
    return spy.call_args.args


def verdicts(identities: list[truth.Identity]) -> dict[str, bool | None]:
    return {identity.name: identity.holds for identity in identities}


def red(identities: list[truth.Identity]) -> set[str]:
    return {identity.name for identity in identities if identity.holds is False}


# They hold


@st.composite
def any_settings(draw):
    """A small recipe and knobs that it takes, bold ones among them."""
    experts = draw(st.sampled_from([2, 4, 6, 8, 12]))
    tokens = draw(st.sampled_from([32, 48, 96]))
    task = draw(st.sampled_from(["skills", "skills", "text"]))
    recipe = replace(
        SMALL,
        task=task,
        num_experts=experts,
        num_layers=draw(st.integers(1, 2)),
        tokens_per_step=tokens,
        seed=draw(st.integers(0, 99)),
    )
    losses = draw(st.lists(st.sampled_from(sorted(LOSS_WEIGHTS.values())), max_size=2))
    chosen = {
        name: draw(st.sampled_from(Knobs.__dataclass_fields__[name].metadata["choices"]))
        for name in ("gating", "router", "bias_rule", "group_score", "token_dropping")
    }
    knobs = Knobs(
        **chosen,
        **dict.fromkeys(losses, 0.5),
        top_k=draw(st.integers(1, 4)),
        u=draw(st.sampled_from([0.0, 0.001, 0.1, 1.0])),
        damping=draw(st.sampled_from([0.0, 0.1, 1.0])),
        freeze_after=draw(st.sampled_from([0, 2])),
        norm_topk=draw(st.booleans()),
        route_scale=draw(st.sampled_from([0.01, 1.0, 2.5, 100.0])),
        num_groups=draw(st.sampled_from([1, 2, 3, 4])),
        groups_kept=draw(st.integers(1, 3)),
        capacity_factor=draw(st.sampled_from([0.1, 1.0, 1.1, 2.0])),
        num_devices=draw(st.sampled_from([1, 2, 4])),
        protected_share=draw(st.sampled_from([0.0, 0.1, 1.0])),
        learning_rate=draw(st.sampled_from([0.003, 0.3])),
    )
    return recipe, settle(recipe, knobs)[0]


@settings(max_examples=120)
@given(any_settings())
def test_every_identity_holds_under_any_settings(drawn):
    recipe, knobs = drawn
    engine = trained(knobs, recipe, steps=4)
    assert [identity.name for identity in engine.truth] == NAMES
    sees_the_future = {"E7"} if knobs.router == "expert_choice" else set()
    assert red(engine.truth) <= sees_the_future, [i for i in engine.truth if i.holds is False]
    for identity in engine.truth:
        assert identity.sentence
        assert identity.source
        assert 0 < len(identity.numbers) < 200


@given(any_settings(), st.sampled_from(["gating", "router", "bias_rule"]), st.data())
def test_they_hold_when_a_setting_changes_in_the_middle(drawn, name, data):
    recipe, knobs = drawn
    engine = trained(knobs, recipe)
    other = data.draw(st.sampled_from(Knobs.__dataclass_fields__[name].metadata["choices"]))
    knobs = settle(recipe, replace(knobs, **{name: other}))[0]
    for _ in range(2):
        engine._unchecked = True
        engine.step(knobs)
        assert red(engine.truth) <= ({"E7"} if knobs.router == "expert_choice" else set()), engine.truth


@pytest.mark.parametrize("name", presets.PRESETS)
def test_they_hold_on_every_preset_and_most_of_them_apply(name):
    preset = presets.PRESETS[name]
    engine = trained(preset.knobs, getattr(preset, "recipe", None) or Recipe(), steps=30)
    seen = verdicts(engine.truth)
    assert red(engine.truth) <= ({"E7"} if preset.knobs.router == "expert_choice" else set())
    assert list(seen.values()).count(True) >= 4
    assert sum(len(str(identity)) for identity in engine.truth) < TRUTH_BYTES / 2


@pytest.mark.parametrize("gating", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("size", [1e-6, 30.0, 1e4, 1e30])
def test_logits_of_any_size_make_no_false_alarm(gating, size):
    knobs = replace(DROPPING, gating=gating)
    (seen,) = evidence(knobs)[0]
    layer = passage(seen.logits_TE * (size / float(seen.logits_TE.abs().max())), seen.bias_E, knobs)
    assert red(checked(layer, knobs)) == set()


def passage(logits_TE, bias_E, knobs):
    """A layer that routes these logits and drops nothing."""
    found = routing.route(logits_TE, bias_E, knobs)

    def reroute(logits_TE, bias_E, rows):
        return routing.route(logits_TE, bias_E, knobs)

    return truth.Layer(logits_TE, bias_E, found, None, found.gates_TK, reroute)


def checked(layer, knobs):
    load_LE = layer.routing.load_E[None]
    return truth.check([layer], balance.sign_rule(layer.bias_E[None], load_LE, knobs.u), load_LE, knobs)


def test_choices_that_hang_on_a_hair_make_no_false_alarm():
    knobs = replace(GROUPED, top_k=2)
    logits_TE = torch.zeros(64, 8) + torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * 1e-6
    assert red(checked(passage(logits_TE, torch.linspace(0, 1e-7, 8), knobs), knobs)) == set()


def test_expert_choice_is_seen_to_see_the_future():
    engine = trained(Knobs(router="expert_choice"))
    identity = engine.truth[6]
    assert identity.holds is False
    assert identity.sentence.startswith("Expert choice sees the future")
    assert "earlier ones go elsewhere" in identity.numbers
    assert verdicts(engine.truth)["E6"] is None


def test_what_does_not_apply_says_why():
    plain = {identity.name: identity for identity in trained(Knobs()).truth}
    assert (plain["E5"].holds, plain["E5"].sentence) == (None, "There is no bias: nothing to move.")
    assert (plain["E6"].holds, plain["E6"].sentence) == (None, "There are no groups to keep to.")
    factor = {identity.name: identity for identity in trained(Knobs(bias_rule="multiplicative")).truth}
    assert factor["E1"].holds is None
    assert "factor" in factor["E1"].sentence
    assert factor["E5"].holds is True
    frozen = trained(replace(GROUPED, freeze_after=1), steps=3).truth[4]
    assert (frozen.holds, frozen.sentence) == (None, "The bias keeps its values. It is frozen.")


# When the engine checks


def test_nothing_is_checked_unless_asked():
    engine = Engine(SMALL, GROUPED)
    with mock.patch.object(truth, "check", side_effect=AssertionError):
        for _ in range(EVAL_EVERY + 1):
            engine.step(GROUPED)
    assert engine.truth is None


def test_it_is_checked_at_first_with_each_evaluation_and_under_new_knobs():
    engine, checked = Engine(SMALL, GROUPED), []
    engine.wants_truth = True
    other = replace(GROUPED, u=0.1)
    with mock.patch.object(truth, "check", side_effect=lambda *_: checked.append(engine.step_number) or []):
        for step in range(1, 2 * EVAL_EVERY + 1):
            engine.step(GROUPED if step < 30 else other)
    assert checked == [1, EVAL_EVERY, 30, 2 * EVAL_EVERY]


def test_checking_changes_no_number_of_the_training():
    watched, alone = trained(DROPPING, TWO_LAYERS, 5), Engine(TWO_LAYERS, DROPPING)
    for _ in range(5):
        alone.step(DROPPING)
    assert (watched.bias_LE == alone.bias_LE).all()
    for one, other in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert (one == other).all()
    assert all(layer.witness is None for layer in watched.model.layers)


def test_the_worst_layer_is_shown():
    layers, after_LE, kept_LE, knobs = evidence(DROPPING, TWO_LAYERS)
    broken = replace(layers[1], used_TK=layers[1].used_TK * 1.5)
    found = truth.check([layers[0], broken], after_LE, kept_LE, knobs)
    assert red(found) == {"E8"}
    assert found[7].numbers.startswith("layer 1: ")


# Each goes red when its rule is broken


def broken_by_hand(knobs: Knobs = DROPPING, **changes) -> set[str]:
    """The red ones when a layer's record is changed by `name=function of (layer, old value)`."""
    (layer,), after_LE, kept_LE, knobs = evidence(knobs)
    parts = {name: change(layer, getattr(layer, name)) for name, change in changes.items() if hasattr(layer, name)}
    kept_LE = changes["kept_load"](layer, kept_LE) if "kept_load" in changes else kept_LE
    return red(truth.check([replace(layer, **parts)], after_LE, kept_LE, knobs))


def test_the_unbroken_batch_is_all_green():
    assert set(verdicts(trained(DROPPING).truth).values()) == {True}


def test_e1_goes_red_when_the_bias_leaks_into_the_gates(monkeypatch):
    def leaking(logits_TE, bias_E, knobs, token_id_T=None):
        found = routing.route(logits_TE, bias_E, knobs, token_id_T)
        chosen_TK = (found.scores_TE + bias_E).gather(1, found.chosen_TK)
        return replace(found, gates_TK=routing.gate(chosen_TK, knobs.norm_topk, knobs.route_scale))

    monkeypatch.setattr(model, "decide", leaking)
    assert red(trained(GROUPED).truth) == {"E1"}


def test_e1_goes_red_when_the_bias_has_a_gradient():
    assert broken_by_hand(bias_E=lambda layer, bias_E: bias_E.clone().requires_grad_()) == {"E1"}


def test_e1_goes_red_when_a_constant_matters(monkeypatch):
    monkeypatch.setattr(routing, "selection_score", lambda scores_TE, bias_E, rule: scores_TE * (1 + bias_E))
    assert red(trained(replace(GROUPED, num_groups=1, groups_kept=1)).truth) == {"E1"}


def test_e2_goes_red_when_a_loss_is_out_of_scale(monkeypatch):
    right = balance.LOSSES["sequence"]
    monkeypatch.setitem(balance.LOSSES, "sequence", lambda *given, **named: 1.01 * right(*given, **named))
    assert red(trained(replace(GROUPED, alpha_sequence=0.1)).truth) == {"E2"}
    assert red(trained(GROUPED).truth) == set()


def test_e2_goes_red_when_the_load_counts_wrongly():
    twice = broken_by_hand(routing=lambda layer, found: replace(found, load_E=found.load_E * 2))
    assert {"E2", "E8"} <= twice


@pytest.mark.parametrize("extra", [-1, 1])
def test_e3_goes_red_when_a_bin_drops_one_pair_too_many_or_too_few(monkeypatch, extra):
    right = capacity.capacity
    monkeypatch.setattr(capacity, "capacity", lambda *sizes: right(*sizes) + extra)
    assert red(trained(GROUPED).truth) == {"E3"}


def test_e4_goes_red_when_max_vio_has_another_denominator(monkeypatch):
    monkeypatch.setattr(metrics, "max_vio", lambda load_E: (load_E.max(-1) - load_E.mean(-1)) / load_E.max(-1))
    assert red(trained(GROUPED).truth) == {"E4"}


def test_e4_goes_red_when_a_token_counts_twice_for_one_expert():
    def doubled(layer, found):
        chosen_TK = torch.zeros_like(found.chosen_TK)
        return replace(found, chosen_TK=chosen_TK, load_E=torch.bincount(chosen_TK.flatten(), minlength=8))

    assert "E4" in broken_by_hand(GROUPED, routing=doubled)


def test_e5_goes_red_when_the_sign_is_flipped(monkeypatch):
    wrong = partial(balance._by_load, lambda bias_LE, load_LE, u: balance.sign_rule(bias_LE, load_LE, -u))
    monkeypatch.setitem(balance.BIAS_RULES, "sign", wrong)
    assert red(trained(GROUPED).truth) == {"E5"}


@pytest.mark.parametrize("rule", ["proportional", "rms", "sign_centred", "momentum", "quantile"])
def test_e5_goes_red_when_a_rule_lets_the_sum_drift(monkeypatch, rule):
    right = balance.BIAS_RULES[rule]

    def drifting(*given):
        state = right(*given)
        return replace(state, bias_LE=state.bias_LE + 1e-4)

    monkeypatch.setitem(balance.BIAS_RULES, rule, drifting)
    assert red(trained(replace(GROUPED, bias_rule=rule)).truth) == {"E5"}


def test_e5_goes_red_when_dropped_pairs_are_left_out_of_the_load():
    (layer,), after_LE, kept_LE, knobs = evidence(replace(DROPPING, capacity_factor=0.25, protected_share=0.0))
    after_LE = balance.sign_rule(layer.bias_E[None], torch.from_numpy(kept_LE), knobs.u)
    assert red(truth.check([layer], after_LE, kept_LE, knobs)) == {"E5"}


def test_e6_goes_red_when_the_mask_is_0(monkeypatch):
    right = routing.limit_to_groups

    def masked_with_0(*given):
        selection_TE = right(*given)
        return selection_TE.masked_fill(selection_TE.isinf(), 0.0)

    monkeypatch.setattr(routing, "limit_to_groups", masked_with_0)
    assert "E6" in red(trained(GROUPED).truth)


def test_e6_goes_red_when_groups_are_not_limited(monkeypatch):
    monkeypatch.setattr(routing, "limit_to_groups", lambda selection_TE, *_: selection_TE)
    assert red(trained(replace(GROUPED, groups_kept=1)).truth) == {"E6"}


def test_e7_goes_red_when_scores_are_standardised_over_the_batch(monkeypatch):
    def standardised(logits_TE, *given):
        return replace(routing.decide(logits_TE / logits_TE.std(-2, keepdim=True), *given), logits_TE=logits_TE)

    monkeypatch.setattr(model, "decide", standardised)
    assert "E7" in red(trained(Knobs()).truth)


def test_e8_goes_red_when_survivors_are_renormalised():
    def renormalised(layer, used_TK):
        return used_TK / used_TK.sum(1, keepdim=True).clamp(min=1e-9)

    assert broken_by_hand(used_TK=renormalised) == {"E8"}


def test_e8_goes_red_when_a_dropped_pair_still_counts():
    assert broken_by_hand(used_TK=lambda layer, _: layer.routing.gates_TK) == {"E8"}


def test_e8_goes_red_when_the_kept_load_is_the_load():
    assert broken_by_hand(kept_load=lambda layer, _: layer.routing.load_E[None]) == {"E8"}


def test_e8_goes_red_when_gates_are_not_normalised(monkeypatch):
    monkeypatch.setattr(routing, "gate", lambda chosen_TK, norm, scale: chosen_TK * scale)
    assert red(trained(GROUPED).truth) == {"E1", "E8"}


def test_e8_goes_red_when_a_pair_moves_to_another_expert():
    def moved(layer, found):
        return replace(found, load_E=found.load_E.roll(1))

    assert "E8" in broken_by_hand(routing=moved)
