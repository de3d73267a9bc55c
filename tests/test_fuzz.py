"""Thousands of addresses, settings and texts that nobody thought of: each is taken, or refused in a sentence.

Nothing here knows how the answer is found. It knows what every answer must be: settings that go together, steps whose
numbers are numbers, and a sentence that names what was refused and what to do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import permutations
from random import Random
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from moeviz import presets
from moeviz.config import (
    BALANCING,
    DEVICES,
    KNOB_FIELDS,
    RECIPE_FIELDS,
    TASKS,
    Knobs,
    Recipe,
    SettingsError,
    check,
    check_text,
    setting_names,
    settle,
    show,
)
from moeviz.engine import Engine, TrainingDiverged, Twins
from moeviz.ui import controls, fields, receipts, session
from moeviz.ui import hosting as ui_hosting
from tests.test_host import hosting
from tests.test_pages import open_page, run_of

READABLE = 320  # characters: three lines of the page
REMEDY = re.compile(
    r"\b(Choose|Try|Keep at least|Lower|Bring|The default is|Did you mean|lists them all|lists all that are|There are:)"
)


# --- addresses -------------------------------------------------------------------------------------------------------

WORDS = sorted(
    {label for labels in fields.LABELS.values() for label in labels.values()}
    | {choice for spec in (*RECIPE_FIELDS.values(), *KNOB_FIELDS.values()) for choice in spec.metadata["choices"]}
    | {*BALANCING, *presets.PRESETS, "true", "false", "True", "1", "off", "None", "custom"}
)
ODD = [
    *("", " ", "\t\n", "0x10", "1_0", "1e999", "-1e999", "nan", "-inf", "-0", "-0.0", "1e-400", "٣", "½", "10²", "1,5"),
    *("💥" * 30, "\u202e", "\0", "\ud800", "a\u0301", "\ufeff1", "\u00a016", "16\n32", "9" * 4299, "9" * 4301),
    *("![x](https://example.org/x.png)", "<img src=//example.org>", "[x](javascript:0)", "$x$", "**", "`", "# x"),
    *("%00", "%", "%zz", "+", "&", "=", "../..", "'; --", "{0}", "{name!r}", "%s", "\\", "a" * 10_000, "[" * 10_000),
]
NEAR_NAMES = ["run", "speeds", "U", " u", "u ", "top-k", "topk", "alpha_", "preset_choice", "embed", "nonsense"]
names = st.one_of(
    st.sampled_from([*setting_names(), "preset"]),
    st.sampled_from([*setting_names(), "preset"]),
    st.sampled_from([*NEAR_NAMES, *ODD]),
    st.text(max_size=12),
)
texts = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(ODD),
    st.integers(-2, 70).map(str),
    st.integers().map(str),
    st.floats().map(str),
    st.floats(0, 1).map(str),
    st.text(max_size=12),
)


def said_or_granted(name: str, text: str, granted: dict, notices: list[str]) -> bool:
    """Whether a part of an address was taken as it stands, or some sentence names it."""
    if name == "preset":
        taken = text.strip() in presets.PRESETS
    elif name == "balancing":
        taken = text.strip() in BALANCING or text.strip() in fields.LABELS["balancing"].values()
    elif name in granted:
        value, text = granted[name], text.strip()
        taken = text in (str(value), fields.LABELS.get(name, {}).get(value)) or _reads_as(text, value)
    else:
        taken = False
    # As it can be quoted: the beginning, up to the first character that a sentence writes differently.
    quoted = re.match(r"[\w .,=+-]*", name.strip()[:40], re.ASCII).group()
    summed_up = name not in granted and "More names that are no settings" in " ".join(notices)
    return taken or summed_up or any(quoted in notice for notice in notices)


def _reads_as(text: str, value: object) -> bool:
    if isinstance(value, bool):
        return text.lower() in (("true", "1") if value else ("false", "0"))
    try:
        return not isinstance(value, str) and float(text) == value
    except ValueError:
        return False


def assert_answered(parameters: dict[str, str]) -> None:
    """What must be true of the answer to any address."""
    recipe, knobs, notices = fields.from_link(parameters)
    check(recipe, knobs)
    assert settle(recipe, knobs) == (knobs, [])
    granted = fields.values_of(recipe, knobs)
    for name, text in parameters.items():
        assert said_or_granted(name, text, granted, notices), (name, text, notices)
    assert len(notices) <= 4 * len(parameters), "at most one for each part, and what its value brings about"
    for notice in notices:
        assert len(notice) <= READABLE, notice
        assert notice.isprintable(), "one line, and nothing in it that cannot be seen"
        if notice.startswith("In the address:"):
            assert not re.search(r"(?<!\\)(\\\\)*[\[\]<*$~|]", notice), f"Markdown from elsewhere: {notice}"
            assert REMEDY.search(notice), notice
    link = fields.to_link(recipe, knobs)
    assert not any(text.startswith("-") for text in link.values()), "-0 is 0"
    assert fields.from_link(link) == (recipe, knobs, []), "what was granted can be shared"


@settings(max_examples=1000)
@given(st.dictionaries(names, texts, max_size=8))
@example(dict.fromkeys([*setting_names(), "preset", "![y](//example.org)"], "![x](https://example.org/x.png)"))
@example({"preset": "a" * 10_000, "balancing": "b" * 10_000, "u": "1" * 10_000, "c" * 10_000: ""})
@example({"u": "-0.0", "alpha": "-0", "token_dropping": "expert"})
def test_every_address_is_answered_with_usable_settings_and_sentences_that_can_be_read(parameters):
    assert_answered(parameters)


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(st.sampled_from(setting_names()), st.binary(max_size=6), st.booleans())
        | st.tuples(st.sampled_from(setting_names()), texts.map(lambda text: text.encode("utf-8", "replace"))),
        max_size=6,
    )
)
def test_every_query_as_a_browser_may_percent_encode_it_is_answered(parts):
    query = "&".join(f"{name}={quote(value) if plus else value.hex('%')}" for name, value, *plus in parts)
    assert_answered({name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()})


def test_an_address_of_thousands_of_names_is_answered_in_a_few_sentences():
    parameters = {f"topk{number}{'x' * 60}": "1" for number in range(3000)} | {"u": "0.01", "gating": "x"}
    _, knobs, notices = fields.from_link(parameters)
    assert knobs.u == 0.01
    assert len(notices) < 10
    assert "More names that are no settings: 2,995." in notices[-1]
    assert "gating=x is not a choice" in " ".join(notices)


@pytest.mark.parametrize("order", list(permutations(["num_experts", "d_expert", "d_model"])))
def test_sizes_that_are_too_large_until_another_is_small_are_had_in_any_order(order):
    text = {"num_experts": "256", "d_expert": "1024", "d_model": "4"}
    recipe, _, notices = fields.from_link({name: text[name] for name in order} | {"u": "x"})
    assert recipe == Recipe(num_experts=256, d_expert=1024, d_model=4)
    assert len(notices) == 1


@pytest.mark.parametrize("task", [" text", "next byte of text\t", "text"])
def test_blanks_around_a_value_change_nothing(task):
    parameters = {"task": task, "preset": " too_fast ", "token_dropping": " off "}
    recipe, knobs, notices = fields.from_link(parameters)
    assert (recipe.task, recipe.d_model, recipe.num_layers, notices) == ("text", 48, 2, [])
    assert knobs == presets.PRESETS["too_fast"].knobs


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"sequence_length": "10"}, "sequence_length is left as it was"),
        ({"d_model": "512", "d_expert": "1024"}, "d_expert is left as it was"),
        ({"precision": "bfloat16", "d_model": "12", "u": "x"}, "d_model is left as it was"),
    ],
)
def test_a_part_that_is_refused_for_what_another_setting_is_has_its_own_name_in_the_sentence(parameters, named):
    assert named in " ".join(fields.from_link(parameters)[2])


@st.composite
def possible(draw, recipes, knobs=None):
    """A recipe and the nearest possible knobs on the sliders' stops."""
    recipe = draw(recipes)
    return recipe, settle(recipe, draw(ON_STOPS if knobs is None else knobs))[0]


def drawn(spec, most=None):
    """Any value of a setting, more often a small one."""
    rules = spec.metadata
    if isinstance(spec.default, bool):
        return st.booleans()
    if rules["choices"]:
        return st.sampled_from(rules["choices"])
    if isinstance(spec.default, int):
        high = min(rules["high"], most or rules["high"])
        return st.integers(rules["low"], min(12, high)) | st.integers(rules["low"], high)
    return st.just(spec.default) | st.floats(rules["low"], rules["high"])


ON_STOPS = st.builds(
    Knobs,
    **{name: drawn(spec) for name, spec in KNOB_FIELDS.items()}
    | {name: st.sampled_from(stops) for name, stops in fields.STOPS.items()},
)


@st.composite
def any_recipe(draw):
    """Any size, the task's own sizes as often as others."""
    task, precision = draw(st.sampled_from(["skills", "text"])), draw(st.sampled_from(["float32", "bfloat16"]))
    unit = 4 if precision == "float32" else 8
    length = draw(st.integers(2, 256))
    return Recipe(
        task=task,
        precision=precision,
        device=draw(st.sampled_from(DEVICES)),
        num_experts=draw(st.integers(2, 32) | st.integers(2, 256)),
        d_model=draw(st.sampled_from([8, 32, 48, unit, 3 * unit])),
        d_expert=draw(st.sampled_from([8, 32, 48, unit, 3 * unit])),
        num_layers=draw(st.integers(1, 8)),
        shared_experts=draw(st.integers(0, 4)),
        mtp_depth=draw(st.integers(0, 2)),
        tokens_per_step=length * draw(st.integers(-(-32 // length), 8192 // length)),
        sequence_length=length,
        seed=draw(st.integers(0, 2**31 - 1)),
    )


@settings(max_examples=300)
@given(possible(any_recipe()), st.randoms(use_true_random=False))
@example((Recipe(task="text", d_model=32, num_layers=1), Knobs()), Random(0))
def test_a_shared_address_gives_its_settings_back_in_any_order_and_beside_any_nonsense(chosen, random):
    link = fields.to_link(*chosen)
    assert fields.from_link(link) == (*chosen, [])
    nonsense = {name: "?" for name in random.sample([*setting_names(), "preset", "speeds"], 3) if name not in link}
    parts = list((link | nonsense).items())
    random.shuffle(parts)
    recipe, knobs, notices = fields.from_link(dict(parts))
    assert (recipe, knobs) == chosen
    assert len(notices) == len(nonsense)


@settings(max_examples=150)
@given(possible(any_recipe()))
def test_a_shared_address_survives_the_browsers_encoding(chosen):
    query = parse_qs(urlencode(fields.to_link(*chosen)))
    assert fields.from_link({name: value for name, [value] in query.items()}) == (*chosen, [])


# --- training --------------------------------------------------------------------------------------------------------

TEXT = bytes(range(256)) * 3


@st.composite
def small_recipes(draw):
    """Quick ones: a step takes about a millisecond."""
    length = draw(st.sampled_from([2, 4, 16, 33]))
    return Recipe(
        task=draw(st.sampled_from(["skills", "text"])),
        num_experts=draw(st.integers(2, 16)),
        d_model=draw(st.sampled_from([4, 8])),
        d_expert=draw(st.sampled_from([4, 8])),
        num_layers=draw(st.integers(1, 2)),
        shared_experts=draw(st.integers(0, 1)),
        mtp_depth=draw(st.integers(0, 2)),
        tokens_per_step=length * draw(st.integers(-(-32 // length), max(1, 64 // length))),
        sequence_length=length,
        seed=draw(st.integers(0, 99)),
        device="cpu",
    )


ANY_KNOBS = st.builds(
    Knobs,
    **{name: drawn(spec, most=16) for name, spec in KNOB_FIELDS.items()}
    | {name: st.sampled_from([0.0, 0.0, 0.1, 100.0]) for name in KNOB_FIELDS if name.startswith("alpha")}
    | {"probe_every": st.integers(0, 3), "freeze_after": st.integers(0, 3)},
)


def text_of(recipe: Recipe) -> bytes | None:
    return TEXT if recipe.task == "text" else None


def assert_refused(call, *arguments) -> None:
    with pytest.raises(SettingsError) as refusal:
        call(*arguments)
    assert REMEDY.search(str(refusal.value)), refusal.value


def possible_or_refused(recipe: Recipe, knobs: Knobs, call, *arguments) -> Knobs:
    """The knobs if they go with the recipe; else the nearest that do, once the call has refused these."""
    settled, notices = settle(recipe, knobs)
    if notices:
        assert_refused(call, *arguments)
    return settled


def assert_numbers(shot, recipe: Recipe, knobs: Knobs) -> None:
    """Every number of a snapshot is one, or says that it was not measured, and no token is lost."""
    T, K, E = recipe.tokens_per_step, knobs.top_k, recipe.num_experts
    routed = E * math.ceil(T * K / E) if knobs.router == "expert_choice" else T * K
    assert shot.load_LE.sum(1).tolist() == [routed] * recipe.num_layers
    assert (shot.load_LE >= 0).all()
    assert (shot.kept_load_LE <= shot.load_LE).all()
    if knobs.token_dropping == "none" or knobs.protected_share == 1:
        assert (shot.kept_load_LE == shot.load_LE).all()
    assert all(map(math.isfinite, (shot.task_loss, shot.added_loss, shot.steps_per_second)))
    for name in ("bias_LE", "max_vio_L", "max_vio_global_L", "straggler_L", "fan_out_L", "dropped_fraction_L"):
        assert np.isfinite(getattr(shot, name)).all() or _undefined(name, recipe, knobs), name
    assert (shot.dropped_fraction_L >= 0).all()
    assert (shot.dropped_fraction_L <= 1).all()
    assert (shot.fan_out_L >= 0).all()
    assert (shot.fan_out_L <= knobs.num_groups).all()
    looks_ahead = recipe.task == "text" and recipe.mtp_depth
    assert math.isfinite(shot.mtp_loss) if looks_ahead else math.isnan(shot.mtp_loss)


def _undefined(name: str, recipe: Recipe, knobs: Knobs) -> bool:
    """A straggler needs devices of equal size."""
    return name == "straggler_L" and recipe.num_experts % knobs.num_devices > 0


@settings(max_examples=250)
@given(small_recipes(), st.lists(ANY_KNOBS, min_size=3, max_size=3))
def test_any_settings_train_whatever_they_were_the_step_before_or_are_refused(recipe, asked):
    knobs = possible_or_refused(recipe, asked[0], Engine, recipe, asked[0], text_of(recipe))
    engine = Engine(recipe, knobs, text_of(recipe))
    engine.wants_truth = True
    assert_numbers(engine.observe(), recipe, knobs)
    for wanted in asked:
        before = engine.step_number
        knobs = possible_or_refused(recipe, wanted, engine.step, wanted)
        assert engine.step_number == before, "what is refused has not happened"
        try:
            assert_numbers(engine.step(knobs), recipe, knobs)
        except TrainingDiverged:
            assert engine.step_number == before
            continue
        broken = {identity.name: identity for identity in engine.truth if identity.holds is False}
        assert broken.keys() <= ({"E7"} if knobs.router == "expert_choice" else set()), broken
    assert all(weight.isfinite().all() for weight in engine.model.parameters())
    assert math.isfinite(engine.evaluate())


@settings(max_examples=40)
@given(small_recipes(), st.lists(st.lists(ANY_KNOBS, min_size=3, max_size=3), min_size=2, max_size=2))
def test_any_twins_train_side_by_side_or_are_refused_together(recipe, asked):
    settled = [[settle(recipe, knobs)[0] for knobs in step] for step in asked]
    twins = Twins(recipe, settled[0], text_of(recipe))
    for wanted, knobs in zip(asked, settled, strict=True):
        if wanted != knobs:
            assert_refused(twins.step, wanted)
        results = twins.step(knobs)
        for own, shot in zip(knobs, results, strict=True):
            if not isinstance(shot, TrainingDiverged):
                assert_numbers(shot, recipe, own)


@settings(max_examples=60)
@given(st.binary(max_size=64), st.integers(0, 8), st.sampled_from([2, 5, 16]), st.integers(1, 2))
@example(b"\0", 400, 16, 2)
@example(b"\xed\xa0\x80", 200, 16, 1)
def test_any_bytes_are_learned_or_refused_for_their_length(piece, times, length, layers):
    source = piece * times
    recipe = Recipe(
        task="text",
        num_experts=4,
        d_model=4,
        d_expert=4,
        num_layers=layers,
        mtp_depth=2,
        tokens_per_step=length * -(-32 // length),
        sequence_length=length,
        device="cpu",
    )
    if len(source) < 10 * (length + 1) + 1:
        assert_refused(check_text, source, length)
        assert_refused(Engine, recipe, Knobs(), source)
        return
    engine = Engine(recipe, Knobs(), source)
    for shot in (engine.observe(), engine.step(Knobs()), engine.step(Knobs(bias_rule="sign"))):
        assert_numbers(shot, recipe, Knobs())


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_host() -> Iterator[None]:
    """Pages on a host whose runs are built at once: nothing here looks at what they learn."""
    with hosting() as host, pytest.MonkeyPatch.context() as patch:
        for module in (ui_hosting, session, controls, receipts):
            patch.setattr(module, "host", lambda: host)
        yield


def _can_be_sent(text: str) -> bool:
    """Half a character pair has no percent-encoding, and `embed` is Streamlit's own."""
    return "\ud800" not in text and not text.startswith("embed")


def assert_in_agreement(at: AppTest) -> None:
    """The page stands, and its controls and its run have the same settings."""
    assert not at.exception, at.exception
    me, run = at.session_state["moeviz"], run_of(at)
    check(me.recipe, me.knobs)
    assert (run.recipe, run.knobs) == (me.recipe, me.knobs)
    held = fields.values_of(me.recipe, me.knobs)
    shown = {name: at.session_state[name] for name in held if name in at.session_state}
    assert shown == {name: held[name] for name in shown}


# What a visitor may set a control to.
OPTIONS = (
    {name: spec.metadata["choices"] for name, spec in KNOB_FIELDS.items() if spec.metadata["choices"]}
    | fields.STOPS
    | {"balancing_choice": tuple(BALANCING), "preset_choice": tuple(presets.PRESETS), "norm_topk": (True, False)}
    | {"num_groups": (1, 2, 3, 4, 5, 6, 8, 12, 16), "groups_kept": range(1, 17), "num_devices": range(1, 17)}
    | {"top_k": range(1, 17), "freeze_after": (0, 1, 1_000_000), "probe_every": (0, 1, 10_000)}
)
SIZES = {
    "num_experts": (2, 5, 6, 8, 16),
    "tokens_per_step": (32, 64, 90, 100),
    "sequence_length": (2, 3, 32, 50),
    "task": TASKS,
}


def turn(at: AppTest, random: Random) -> str:
    """Set one control that is offered to something it offers, as a hand would, or build something else."""
    if random.random() < 0.15:
        sizes = {name: random.choice(values) for name, values in SIZES.items()}
        for name, value in sizes.items():
            _set(at, at.selectbox(key=name) if name == "task" else at.number_input(key=name), value)
        next(button for button in at.button if button.label == "Restart with these").click().run()
        return f"built {sizes}"
    drawn = [*at.selectbox, *at.select_slider, *at.number_input, *at.toggle, *at.get("button_group")]
    control = random.choice([element for element in drawn if element.key in OPTIONS and not element.disabled])
    value = random.choice([value for value in OPTIONS[control.key] if _is_offered(control, value)])
    _set(at, control, value)
    at.run()
    return f"{control.key} = {value}"


def _is_offered(control: Any, value: Any) -> bool:
    if control.type == "number_input":
        return control.min <= value <= control.max
    if control.key in ("num_groups", "groups_kept", "num_devices"):
        return fields.LABELS.get(control.key, {}).get(value, str(value)) in control.options
    return True


def _set(at: AppTest, control: Any, value: Any) -> None:
    """As the browser does: it also writes the new value into the address."""
    control.set_value(value)
    if control.key in fields.values_of(Recipe(), Knobs()):
        at.query_params[control.key] = fields.LABELS.get(control.key, {}).get(value, show(value))


@pytest.mark.usefixtures("quick_host")
@settings(max_examples=20)
@given(st.dictionaries(names.filter(_can_be_sent), texts.filter(_can_be_sent), max_size=6))
@example({"u": "-0.0", "seed": "2147483647", "learning_rate": "0"})
def test_the_page_opens_at_every_address(parameters):
    at = open_page(**parameters)
    assert_in_agreement(at)
    me = at.session_state["moeviz"]
    address = {name: text for name, text in at.query_params.items() if name != "speed"}
    assert fields.from_link(address) == (me.recipe, me.knobs, []), "the address was put right"
    at.run()
    assert_in_agreement(at)


@pytest.mark.usefixtures("quick_host")
@pytest.mark.parametrize("seed", range(2))
def test_every_way_through_the_controls_leaves_page_and_run_in_agreement(seed):
    random = Random(seed)
    at = open_page()
    way = []
    for _ in range(80):
        way.append(turn(at, random))
        try:
            assert_in_agreement(at)
        except AssertionError as fault:
            raise AssertionError(f"after {'; '.join(way)}") from fault
