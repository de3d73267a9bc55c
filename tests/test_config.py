"""Is every impossible choice refused in a sentence that shows a way out, and every possible one taken?"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeviz import strategies
from moeviz.config import (
    BALANCING,
    KNOB_FIELDS,
    LOSS_WEIGHTS,
    MAX_PARAMETERS,
    RECIPE_FIELDS,
    TASK_DEFAULTS,
    Knobs,
    Recipe,
    SettingsError,
    check,
    describe_change,
    parse_settings,
    settle,
    show,
)

SMALL = {"d_model": 4, "d_expert": 4}  # so that no drawn number of experts is too many parameters


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(SettingsError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def drawn(spec, low=None, high=None) -> st.SearchStrategy:
    """Any value that the field itself accepts."""
    rules = spec.metadata
    if rules["choices"]:
        return st.sampled_from(rules["choices"])
    if isinstance(spec.default, bool):
        return st.booleans()
    low, high = rules["low"] if low is None else low, rules["high"] if high is None else high
    if isinstance(spec.default, float):
        return st.floats(low, high, allow_nan=False)
    return st.integers(low, high)


# Small numbers half of the time, because equal splits are rare among large ones.
RECIPES = st.builds(
    Recipe,
    num_experts=st.integers(2, 24) | drawn(RECIPE_FIELDS["num_experts"]),
    **{k: st.just(v) for k, v in SMALL.items()},
)
KNOBS = st.builds(
    Knobs,
    **{name: drawn(spec) for name, spec in KNOB_FIELDS.items()}
    | {
        name: st.integers(1, 12) | drawn(KNOB_FIELDS[name])
        for name in ("top_k", "num_groups", "groups_kept", "num_devices")
    },
)


# --- one field -------------------------------------------------------------------------------------------------------

NUMBERS = [(kind, spec) for kind in (Recipe, Knobs) for spec in fields(kind) if spec.metadata["low"] is not None]
CHOICES = [(kind, spec) for kind in (Recipe, Knobs) for spec in fields(kind) if spec.metadata["choices"]]
NAMED = {"ids": lambda value: getattr(value, "name", "")}


@pytest.mark.parametrize(("kind", "spec"), NUMBERS, **NAMED)
@pytest.mark.parametrize("beyond", ["below", "above", "far above"])
def test_a_number_outside_its_range_is_refused_with_value_range_and_default(kind, spec, beyond):
    low, high = spec.metadata["low"], spec.metadata["high"]
    step = 1 if isinstance(spec.default, int) else 0.5
    value = {"below": low - step, "above": high + step, "far above": 10**400}[beyond]
    sentence = refusal(kind, **{spec.name: value})
    assert sentence.startswith(f"{spec.name}={show(value)} ")
    assert f"outside {show(low)} to {show(high)}" in sentence
    assert sentence.endswith(f"The default is {show(spec.default)}.")


@pytest.mark.parametrize(("kind", "spec"), NUMBERS, **NAMED)
@pytest.mark.parametrize("end", ["low", "high"])
def test_both_ends_of_a_range_belong_to_it(kind, spec, end):
    value = spec.metadata[end]
    # Neighbours that keep the rest of the recipe possible at the end of the range.
    company = {} if kind is Knobs else {**SMALL, "num_experts": 2, "sequence_length": 2, "tokens_per_step": 32}
    if spec.name == "sequence_length":
        company["tokens_per_step"] = 8192
    assert getattr(kind(**{**company, spec.name: value}), spec.name) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name, spec in KNOB_FIELDS.items() if isinstance(spec.default, float)])
def test_a_number_that_is_none_is_refused(name, value):
    sentence = refusal(Knobs, **{name: value})
    assert sentence.startswith(f"{name}={value} is outside")
    assert "The default is" in sentence


@pytest.mark.parametrize(("kind", "spec"), CHOICES, **NAMED)
def test_an_unknown_choice_is_refused_with_all_the_known_ones(kind, spec):
    sentence = refusal(kind, **{spec.name: "sparkly"})
    assert sentence.startswith(f"{spec.name}=sparkly is not a choice. Choose ")
    assert set(spec.metadata["choices"]) <= set(re.findall(r"\w+", sentence))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Recipe, "num_experts", 16.0),
        (Recipe, "num_experts", "16"),
        (Recipe, "num_experts", True),
        (Recipe, "seed", None),
        (Recipe, "task", 3),
        (Recipe, "task", ["skills"]),
        (Knobs, "top_k", 2.0),
        (Knobs, "u", "0.1"),
        (Knobs, "u", True),
        (Knobs, "alpha", None),
        (Knobs, "norm_topk", 1),
        (Knobs, "norm_topk", "yes"),
        (Knobs, "gating", None),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_type_and_default(kind, name, value):
    default = {**RECIPE_FIELDS, **KNOB_FIELDS}[name].default
    sentence = refusal(kind, **{name: value})
    assert sentence == f"{name}={value!r} is not {type(default).__name__}. The default is {show(default)}."


def test_a_whole_number_will_do_where_a_fraction_is_asked_for():
    assert Knobs(u=1, alpha=0) == Knobs(u=1.0, alpha=0.0)


@pytest.mark.parametrize("settings", [Recipe(), Knobs()])
def test_settings_are_frozen_and_equal_by_value(settings):
    name = fields(settings)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(settings, name, getattr(settings, name))
    assert settings == replace(settings)
    assert hash(settings) == hash(replace(settings))


# --- a recipe in itself ----------------------------------------------------------------------------------------------


@given(st.sampled_from(["d_model", "d_expert"]), st.integers(4, 512))
def test_a_width_is_a_multiple_of_4_and_the_remedies_are_the_neighbours(name, value):
    if value % 4 == 0:
        assert getattr(Recipe(num_experts=2, **{name: value}), name) == value
        return
    sentence = refusal(Recipe, num_experts=2, **{name: value})
    assert f"{name}={value} is not a multiple of 4" in sentence
    remedies = [int(number) for number in re.findall(r"\d+", sentence.split("Try ")[1])]
    assert remedies == [value // 4 * 4, value // 4 * 4 + 4]
    for remedy in remedies:
        Recipe(num_experts=2, **{name: remedy})


@given(st.integers(32, 8192) | st.integers(32, 300) | st.integers(8000, 8192), st.integers(2, 256))
def test_a_batch_is_whole_sequences_and_every_remedy_offered_is_accepted(tokens, length):
    if tokens % length == 0:
        assert Recipe(tokens_per_step=tokens, sequence_length=length).num_sequences == tokens // length
        return
    sentence = refusal(Recipe, tokens_per_step=tokens, sequence_length=length)
    assert f"tokens_per_step={tokens} " in sentence
    assert f"sequences of {length}" in sentence
    remedies = [int(number) for number in re.findall(r"\d+", sentence.split("Try ")[1])]
    assert remedies
    assert len(set(remedies)) == len(remedies)
    for remedy in remedies:
        assert Recipe(tokens_per_step=remedy, sequence_length=length).num_sequences == remedy // length


def test_the_number_of_parameters_is_what_a_loop_over_layers_experts_and_matrices_counts():
    recipe = Recipe(num_layers=3, num_experts=5, shared_experts=2, d_model=8, d_expert=12)
    count = 0
    for _layer in range(3):
        for _expert in range(5 + 2):
            for rows, columns in ((8, 12), (8, 12), (12, 8)):
                count += rows * columns
    assert recipe.num_parameters == count


@pytest.mark.parametrize(
    "huge",
    [
        {"num_experts": 256, "d_model": 512, "d_expert": 1024, "num_layers": 8},
        {"num_experts": 256, "d_model": 256, "d_expert": 256},
        {"num_experts": 2, "shared_experts": 4, "d_model": 512, "d_expert": 1024, "num_layers": 8},
        {"num_experts": 7, "d_model": 488, "d_expert": 1024, "num_layers": 2},  # one percent too many
    ],
)
def test_a_recipe_too_large_for_a_live_toy_is_refused_with_its_size_and_what_to_lower(huge):
    sentence = refusal(Recipe, **huge)
    numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", sentence)]
    assert numbers[0] > numbers[1] == MAX_PARAMETERS
    for name in ("num_experts", "d_model", "d_expert", "num_layers"):
        assert name in sentence


def test_the_largest_recipe_is_the_last_one_within_the_limit():
    # 3 * 2 * 512 * 1024 * 6 = 18.9 million; a seventh layer is one too many.
    assert Recipe(num_experts=2, d_model=512, d_expert=1024, num_layers=6).num_parameters < 20_000_000
    refusal(Recipe, num_experts=2, d_model=512, d_expert=1024, num_layers=7)


@pytest.mark.parametrize("task", RECIPE_FIELDS["task"].metadata["choices"])
def test_the_defaults_of_each_task_go_together(task):
    check(Recipe(task=task, **TASK_DEFAULTS[task]), Knobs())


# --- recipe and knobs together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experts", "knobs", "says"),
    [
        (8, {"top_k": 9}, ["top_k=9", "top_k <= 8"]),
        (10, {"num_groups": 4}, ["10 experts", "4 equal groups", "1, 2, 5 or 10 groups"]),
        (8, {"num_groups": 16}, ["8 experts", "16 equal groups", "1, 2, 4 or 8 groups"]),
        (8, {"num_groups": 4, "groups_kept": 5}, ["groups_kept=5", "4 groups", "1 to 4"]),
        (8, {"groups_kept": 2}, ["groups_kept=2", "1 groups"]),
        (
            16,
            {"num_groups": 8, "groups_kept": 2, "top_k": 6},
            ["top_k=6", "2 kept groups of 2", "at least 3 groups", "top_k <= 4"],
        ),
        (
            10,
            {"token_dropping": "device", "num_devices": 4},
            ["10 experts", "4 devices", "1, 2, 5 or 10 devices"],
        ),
        (
            4,
            {"token_dropping": "device", "num_devices": 8},
            ["4 experts", "8 devices", "1, 2 or 4 devices"],
        ),
        (10, {"alpha_device": 0.1}, ["10 experts", "4 devices", "1, 2, 5 or 10 devices"]),
        (10, {"alpha_communication": 0.1, "num_devices": 3}, ["10 experts", "3 devices", "1, 2, 5 or 10 devices"]),
    ],
)
def test_an_impossible_combination_is_refused_with_value_rule_and_remedy(experts, knobs, says):
    sentence = refusal(check, Recipe(num_experts=experts), Knobs(**knobs))
    for part in says:
        assert part in sentence


@pytest.mark.parametrize("knobs", [{}, {"token_dropping": "expert"}, {"alpha": 1.0, "alpha_z": 1.0}])
def test_the_number_of_devices_is_no_obstacle_while_nothing_is_dropped_or_lost_per_device(knobs):
    check(Recipe(num_experts=10), Knobs(num_devices=4, **knobs))


def possible(experts: int, knobs: Knobs) -> bool:
    """SPEC 1.7, spoken aloud."""
    groups_are_equal = any(size * knobs.num_groups == experts for size in range(1, experts + 1))
    if not groups_are_equal:
        return False
    reachable = sum(1 for expert in range(experts) if expert // (experts // knobs.num_groups) < knobs.groups_kept)
    devices_are_equal = any(size * knobs.num_devices == experts for size in range(1, experts + 1))
    return (
        knobs.groups_kept <= knobs.num_groups
        and knobs.top_k <= reachable
        and (
            devices_are_equal
            or not (knobs.token_dropping == "device" or knobs.alpha_device or knobs.alpha_communication)
        )
    )


@given(RECIPES, KNOBS)
def test_check_refuses_exactly_what_cannot_be_routed(recipe, knobs):
    if possible(recipe.num_experts, knobs):
        check(recipe, knobs)
    else:
        refusal(check, recipe, knobs)


@given(RECIPES, KNOBS)
def test_settled_knobs_are_always_possible_and_every_change_has_its_sentence(recipe, knobs):
    settled, notices = settle(recipe, knobs)
    check(recipe, settled)
    before, after = asdict(knobs), asdict(settled)
    changed = [name for name in before if before[name] != after[name]]
    assert len(notices) == len(changed)
    for name, sentence in zip(changed, notices, strict=True):
        assert sentence.endswith(f" Used here: {name} {before[name]} → {after[name]}.")
        assert str(before[name]) in sentence.split(" Used here")[0]
    if possible(recipe.num_experts, knobs):
        assert settled == knobs
        assert notices == []
    else:
        assert notices


@given(RECIPES, KNOBS)
def test_settling_touches_only_what_can_be_impossible_and_settles_once(recipe, knobs):
    settled, _ = settle(recipe, knobs)
    may_give = ("top_k", "num_groups", "groups_kept", "num_devices")
    assert replace(settled, **{name: getattr(knobs, name) for name in may_give}) == knobs
    assert settle(recipe, settled) == (settled, [])


@pytest.mark.parametrize(
    ("experts", "knobs", "settled"),
    [
        (4, {"top_k": 6}, {"top_k": 4}),
        (16, {"num_groups": 5}, {"num_groups": 4}),
        (16, {"num_groups": 4, "groups_kept": 9}, {"groups_kept": 4}),
        (16, {"num_groups": 8, "groups_kept": 1, "top_k": 5}, {"groups_kept": 3}),
        (16, {"token_dropping": "device", "num_devices": 7}, {"num_devices": 4}),
        (12, {"num_groups": 7, "groups_kept": 7, "top_k": 20}, {"top_k": 12, "num_groups": 6, "groups_kept": 6}),
    ],
)
def test_settling_takes_the_nearest_possible_value(experts, knobs, settled):
    knobs = Knobs(**knobs)
    assert settle(Recipe(num_experts=experts), knobs)[0] == replace(knobs, **settled)


# --- names and texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BALANCING)
def test_a_bias_rule_with_the_losses_that_are_on_has_the_name_people_know(name):
    assert Knobs(**BALANCING[name]).balancing == name
    stronger = {weight: 50.0 for weight in BALANCING[name] if weight in LOSS_WEIGHTS.values()}
    assert Knobs(**BALANCING[name] | stronger).balancing == name, "whatever the weights"


@pytest.mark.parametrize(
    "settings",
    [
        {"bias_rule": "sign", "alpha": 0.1},
        {"bias_rule": "quantile"},
        {"alpha": 0.1, "alpha_sequence": 0.1},
        {"alpha_z": 1e-3},
        {"bias_rule": "sign", "alpha_sequence": 1e-4, "alpha_device": 0.1},
    ],
)
def test_any_other_mixture_is_custom(settings):
    assert Knobs(**settings).balancing == "custom"


def test_every_balancing_is_a_mixture_of_its_own():
    mixtures = {(Knobs(**settings).bias_rule, Knobs(**settings).losses) for settings in BALANCING.values()}
    assert len(mixtures) == len(BALANCING)


@given(KNOBS)
def test_the_losses_that_are_on_are_those_with_a_weight(knobs):
    assert knobs.losses == tuple(loss for loss in strategies.LOSSES if getattr(knobs, LOSS_WEIGHTS[loss]) != 0)


def test_every_loss_has_a_weight_of_its_own_which_is_off_by_default():
    assert tuple(LOSS_WEIGHTS) == tuple(strategies.LOSSES)
    assert [name for name in KNOB_FIELDS if name.startswith("alpha")] == list(LOSS_WEIGHTS.values())
    assert Knobs().losses == ()


@pytest.mark.parametrize(
    ("knob", "texts"),
    [
        ("gating", strategies.AFFINITIES),
        ("router", strategies.ROUTERS),
        ("bias_rule", strategies.BIAS_RULES),
    ],
)
def test_every_choice_is_explained_and_every_explanation_can_be_chosen(knob, texts):
    assert KNOB_FIELDS[knob].metadata["choices"] == tuple(texts)
    assert len({text.title for text in texts.values()}) == len(texts)
    assert all(text.title and text.meaning.endswith(".") and text.formula and text.source for text in texts.values())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({}, {}, []),
        ({}, {"u": 0.1}, ["u 0.003 → 0.1"]),
        ({}, {"norm_topk": False, "top_k": 4}, ["top_k 2 → 4", "norm_topk true → false"]),
        ({}, {"bias_rule": "sign"}, ["balancing none → loss_free"]),
        ({}, {"router": "hash"}, ["router top_k → hash"]),
        ({"bias_rule": "sign"}, {"alpha": 0.1}, ["balancing loss_free → aux_loss"]),
        ({}, {"alpha": 1.0}, ["balancing none → aux_loss", "alpha 0.1 → 1"]),
        ({"alpha": 0.1}, {"alpha": 1.0}, ["alpha 0.1 → 1"]),
        (
            {},
            {"bias_rule": "sign", "alpha_sequence": 1e-4, "u": 0.5},
            ["balancing none → deepseek_v3", "u 0.003 → 0.5"],
        ),
        ({}, {"bias_rule": "sign", "alpha": 0.1}, ["bias_rule none → sign", "alpha 0 → 0.1"]),
        ({"bias_rule": "sign", "alpha": 0.1}, {"bias_rule": "sign"}, ["alpha 0.1 → 0"]),
        ({"bias_rule": "sign"}, {"bias_rule": "quantile"}, ["bias_rule sign → quantile"]),
    ],
)
def test_a_change_is_described_by_what_changed_and_nothing_else(old, new, words):
    assert describe_change(Knobs(**old), Knobs(**new)) == words


@given(KNOBS, KNOBS)
def test_a_change_names_every_setting_that_a_named_balancing_does_not_explain(old, new):
    named = {mark.split(" ")[0] for mark in describe_change(old, new)}
    before, after = asdict(old), asdict(new)
    changed = {name for name in before if before[name] != after[name]}
    if "balancing" not in named:
        assert named == changed
    else:
        usual = asdict(Knobs(**BALANCING[new.balancing]))
        mixture = {"bias_rule", *LOSS_WEIGHTS.values()}
        assert named - {"balancing"} == (changed - mixture) | {name for name in mixture if after[name] != usual[name]}


@given(
    st.builds(
        Recipe,
        seed=drawn(RECIPE_FIELDS["seed"]),
        num_experts=st.integers(2, 256),
        **{k: st.just(v) for k, v in SMALL.items()},
    ),
    KNOBS,
)
def test_settings_written_as_text_read_back_as_themselves(recipe, knobs):
    text = {name: str(value) for name, value in {**asdict(recipe), **asdict(knobs)}.items()}
    assert parse_settings(text, Recipe(), Knobs()) == (recipe, knobs)


def test_no_text_changes_nothing():
    recipe, knobs = Recipe(seed=7), Knobs(u=0.5)
    assert parse_settings({}, recipe, knobs) == (recipe, knobs)


@pytest.mark.parametrize("name", BALANCING)
def test_balancing_is_short_for_a_rule_and_the_weights_of_all_losses(name):
    everything = Knobs(bias_rule="quantile", **dict.fromkeys(LOSS_WEIGHTS.values(), 7.0), u=0.5)
    _, knobs = parse_settings({"balancing": name}, Recipe(), everything)
    assert knobs == Knobs(**BALANCING[name], u=0.5)


@pytest.mark.parametrize("order", [("alpha", "balancing"), ("balancing", "alpha")])
def test_single_settings_change_a_named_balancing_wherever_they_stand(order):
    text = {"balancing": "aux_loss", "alpha": "3"}
    _, knobs = parse_settings({name: text[name] for name in order}, Recipe(), Knobs())
    assert knobs == Knobs(alpha=3.0)


def test_the_setting_of_old_links_is_gone_like_any_unknown_name():
    assert refusal(parse_settings, {"aux_loss": "batch"}, Recipe(), Knobs()).startswith(
        "There is no setting called 'aux_loss'."
    )


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), (" FALSE ", False), ("0", False)])
def test_a_switch_reads_several_spellings(text, value):
    assert parse_settings({"norm_topk": text}, Recipe(), Knobs(norm_topk=not value))[1].norm_topk is value


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("top_k", "two", ["top_k=two", "whole number", "default is 2"]),
        ("top_k", "2.5", ["top_k=2.5", "whole number", "default is 2"]),
        ("top_k", "", ["top_k=", "whole number", "default is 2"]),
        ("u", "fast", ["u=fast", "a number", "default is 0.003"]),
        ("u", "nan", ["u=nan", "outside 0 to 1", "default is 0.003"]),
        ("u", "1e999", ["u=inf", "outside 0 to 1", "default is 0.003"]),
        ("seed", "1" + 400 * "0", ["seed=1", "outside 0 to", "default is 0"]),
        ("seed", 5000 * "1", ["seed=1", "whole number", "default is 0"]),
        ("norm_topk", "maybe", ["norm_topk=maybe", "true or false", "default is true"]),
        ("task", "cooking", ["task=cooking", "skills or text"]),
        ("num_expert", "8", ["'num_expert'", "num_experts"]),
        ("__class__", "8", ["'__class__'", "moeviz settings"]),
        ("balancing", "magic", ["balancing=magic", *BALANCING]),
        ("balancing", "custom", ["balancing=custom", *BALANCING]),
    ],
)
def test_a_text_that_is_no_setting_is_refused_with_what_would_be(name, text, says):
    sentence = refusal(parse_settings, {name: text}, Recipe(), Knobs())
    for part in says:
        assert part in sentence


def test_every_field_explains_itself_and_its_default_is_allowed():
    for spec in itertools.chain(fields(Recipe), fields(Knobs)):
        assert len(spec.metadata["help"].split()) >= 2
        if spec.metadata["choices"]:
            assert spec.default in spec.metadata["choices"]
        if spec.metadata["low"] is not None:
            assert spec.metadata["low"] <= spec.default <= spec.metadata["high"]
