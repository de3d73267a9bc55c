"""Links: what an address asks for, what it gets, and what is said about the rest."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeviz import presets
from moeviz.config import KNOB_FIELDS, RECIPE_FIELDS, Knobs, Recipe, check
from moeviz.ui import fields


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_link_made_from_a_preset_gives_the_preset_back(name):
    knobs = presets.PRESETS[name].knobs
    assert fields.from_link(fields.to_link(Recipe(), knobs)) == (Recipe(), knobs, [])


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_stands_on_the_stops_of_the_sliders(name):
    assert fields.from_link({"preset": name}) == (Recipe(), presets.PRESETS[name].knobs, [])


def test_the_default_settings_need_no_address():
    assert fields.to_link(Recipe(), Knobs()) == {}


def test_a_single_setting_changes_the_preset_it_stands_beside():
    _, knobs, notices = fields.from_link({"preset": "too_fast", "u": "0.01", "balancing": "loss_free"})
    assert (knobs, notices) == (replace(presets.PRESETS["too_fast"].knobs, u=0.01), [])


def test_a_link_may_use_the_words_of_the_page_or_the_names_of_the_settings():
    words = fields.from_link({"balancing": "Loss-free bias", "token_dropping": "off", "num_groups": "off"})
    names = fields.from_link({"balancing": "loss_free", "token_dropping": "none", "num_groups": "1"})
    assert words == names == (Recipe(), Knobs(bias_rule="sign"), [])


@pytest.mark.parametrize("order", [("balancing", "alpha"), ("alpha", "balancing")])
@pytest.mark.parametrize("nonsense", [{}, {"u": "x"}])
def test_a_single_setting_changes_a_named_balancing_wherever_it_stands(order, nonsense):
    text = {"balancing": "Auxiliary loss", "alpha": "3"}
    _, knobs, notices = fields.from_link({name: text[name] for name in order} | nonsense)
    assert (knobs, len(notices)) == (Knobs(alpha=3.0), len(nonsense))


def test_an_address_holds_single_settings_and_no_balancing():
    knobs = Knobs(bias_rule="sign", alpha_sequence=1e-4)
    assert fields.to_link(Recipe(), knobs) == {"bias_rule": "Sign (DeepSeek-V3)", "alpha_sequence": "0.0001"}


def test_any_mixture_of_rule_router_and_losses_can_be_shared():
    knobs = Knobs(
        router="expert_choice", gating="sqrtsoftplus", bias_rule="momentum", alpha=0.1, alpha_z=1e-4, freeze_after=90
    )
    assert fields.from_link(fields.to_link(Recipe(), knobs)) == (Recipe(), knobs, [])


def test_settings_that_only_fit_together_are_taken_together():
    recipe, _, notices = fields.from_link({"tokens_per_step": "100", "sequence_length": "50"})
    assert (recipe.tokens_per_step, recipe.sequence_length, notices) == (100, 50, [])


def test_the_text_task_brings_its_own_sizes():
    recipe, _, notices = fields.from_link({"task": "text"})
    assert (recipe.d_model, recipe.num_layers, notices) == (48, 2, [])


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"gating": "foo"}, "gating=foo is not a choice. Choose softmax, sigmoid or sqrtsoftplus."),
        ({"u": "fast"}, "u=fast is not a number."),
        ({"u": "7"}, "u=7 is outside 0 to 1."),
        ({"u": "0.0042"}, "u=0.0042 lies between the slider's stops: 0.005 is used here."),
        ({"top_k": "0"}, "top_k=0 is outside 1 to 64."),
        ({"num_experts": "10", "num_groups": "4"}, "10 experts cannot be split into 4 equal groups."),
        ({"top_k": "6", "num_groups": "4", "groups_kept": "1"}, "top_k=6 does not fit into 1 kept groups of 4"),
        ({"tokens_per_step": "1000"}, "tokens_per_step=1000 cannot be cut into sequences of 32. Try 992 or 1024."),
        ({"preset": "gpt5"}, "There is no preset called 'gpt5'."),
        ({"balancing": "magic"}, "balancing=magic is not a known strategy."),
        ({"bias_rule": "sign", "aux_loss": "batch"}, "There is no setting called 'aux_loss'."),
        ({"router": "magic"}, "router=magic is not a choice. Choose top_k, expert_choice or hash."),
        ({"alpha_device": "0.1", "num_experts": "10"}, "10 experts cannot be shared equally by 4 devices."),
        ({"to_k": "3"}, "There is no setting called 'to_k'. Did you mean top_k"),
        ({"seed": "1e99"}, "seed=1e99 is not a whole number."),
    ],
)
def test_nonsense_in_an_address_is_answered_by_a_sentence_and_leaves_usable_settings(parameters, sentence):
    recipe, knobs, notices = fields.from_link(parameters)
    assert sentence in " ".join(notices)
    check(recipe, knobs)


def test_one_bad_part_of_an_address_does_not_cost_the_good_parts():
    recipe, knobs, notices = fields.from_link({"gating": "softmax", "u": "x", "num_experts": "8"})
    assert (recipe.num_experts, knobs.gating, len(notices)) == (8, "softmax", 1)


names = st.sampled_from([*RECIPE_FIELDS, *KNOB_FIELDS, "balancing", "preset", "nonsense"])
texts = st.one_of(
    st.text(max_size=8),
    st.integers(-10, 300).map(str),
    st.floats().map(str),
    st.sampled_from(["none", "sign", "quantile", "hash", "text", "softmax", "true", "", "NaN", "1e400", "٣"]),
)


@given(st.dictionaries(names, texts, max_size=6))
def test_no_address_whatever_breaks_the_page(parameters):
    recipe, knobs, _ = fields.from_link(parameters)
    check(recipe, knobs)
    again = fields.from_link(fields.to_link(recipe, knobs))
    assert again == (recipe, knobs, []), "the corrected address must ask for exactly what was granted"


def test_the_controls_values_make_the_same_settings_again():
    recipe, knobs = Recipe(num_experts=8), presets.PRESETS["deepseek_v2"].knobs
    values = fields.values_of(recipe, knobs)
    assert fields.recipe_from(values) == recipe
    assert asdict(fields.knobs_from(values)) == asdict(knobs)
