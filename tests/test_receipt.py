"""Receipts: does the same run give the same hashes, and does anything else give others?"""

from __future__ import annotations

import json
import tomllib
import urllib.parse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moeviz
from moeviz import again, machine
from moeviz import receipt as receipts
from moeviz.config import KNOB_FIELDS, LOSS_WEIGHTS, Knobs, Recipe, SettingsError
from moeviz.engine import Engine, Twins, available_devices
from moeviz.presets import PRESETS
from moeviz.receipt import Receipt, check_text, differences, from_json, hash_of, issue, plan_of, to_json
from moeviz.snapshot import CIRCUMSTANCES, History, record_dtype
from moeviz.ui import fields
from tests import golden
from tests.test_cli import call

SMALL = Recipe(device="cpu", num_experts=8, d_model=16, d_expert=12, tokens_per_step=64, sequence_length=16)
SIGN = Knobs(bias_rule="sign", num_groups=2, groups_kept=1)
CPU = {
    "versions": {"moeviz": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "python": "3.11.9"},
    "device": "cpu",
    "machine": {"architecture": "x86_64"},
}


def rows_of(recipe: Recipe, plan: list[tuple[int, Knobs]], steps: int, text: bytes | None = None) -> np.ndarray:
    """A history whose rows say which settings were in force, as the server's do."""
    engine, history = Engine(recipe, plan[0][1], text), History(recipe.num_layers, recipe.num_experts, 64)
    history.append(engine.observe())
    version = 0
    for step in range(1, steps + 1):
        version += version + 1 < len(plan) and plan[version + 1][0] == step
        history.append(engine.step(plan[version][1]), version)
    return history.since(-1)[1]


def issued(recipe=SMALL, plan=((0, SIGN),), steps=3, text=None) -> Receipt:
    return issue(recipe, plan, rows_of(recipe, list(plan), steps, text), text=text, **CPU)


PLAN = [(0, SIGN), (4, replace(SIGN, u=0.05)), (9, replace(SIGN, gating="softmax", bias_rule="none"))]


# --- the hashes ------------------------------------------------------------------------------------------------------


def a_row() -> np.ndarray:
    row = np.zeros(1, record_dtype(2, 4))
    for number, name in enumerate(row.dtype.names):
        row[name] = number + 1
    row["eval_loss"] = np.nan
    return row


def test_every_column_of_a_row_counts_but_those_that_are_not_the_runs_own():
    for name in record_dtype(2, 4).names:
        changed = a_row()
        flat = changed[name].reshape(-1)
        flat[-1] = flat[-1] + 1 if np.isfinite(flat[-1]) else 0
        same = hash_of(a_row()[0]) == hash_of(changed[0])
        assert same == (name in CIRCUMSTANCES), name


def test_the_smallest_change_of_a_number_changes_the_hash():
    changed = a_row()
    changed["task_loss"] = np.nextafter(changed["task_loss"], np.float32(9))
    assert hash_of(changed[0]) != hash_of(a_row()[0])


def test_a_hash_is_the_same_on_a_machine_of_the_other_byte_order():
    swapped = a_row().astype(a_row().dtype.newbyteorder(">"))
    assert swapped.tobytes() != a_row().tobytes()
    assert hash_of(swapped[0]) == hash_of(a_row()[0])


def test_a_nan_is_a_nan():
    negative = a_row()
    negative["eval_loss"].view("<u4")[:] = 0xFFC00001
    assert np.isnan(negative["eval_loss"]).all()
    assert hash_of(negative[0]) == hash_of(a_row()[0])


def test_the_same_bytes_under_another_name_or_type_have_another_hash():
    renamed, retyped = a_row(), a_row()
    renamed.dtype.names = ["seen" if name == "task_loss" else name for name in renamed.dtype.names]
    types = [(name, "<u4" if name == "task_loss" else retyped.dtype[name]) for name in retyped.dtype.names]
    assert renamed.tobytes() == retyped.tobytes()
    assert len({hash_of(row[0]) for row in (a_row(), renamed, retyped.view(types))}) == 3


def test_numbers_that_change_places_change_the_hash():
    moved = a_row()
    moved["task_loss"], moved["added_loss"] = a_row()["added_loss"], a_row()["task_loss"]
    assert hash_of(moved[0]) != hash_of(a_row()[0])


# --- the same run again ----------------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_receipt_and_another_run_another():
    ours = issued(plan=PLAN, steps=12)
    assert issued(plan=PLAN, steps=12) == ours
    later = issued(plan=[PLAN[0], (5, PLAN[1][1]), PLAN[2]], steps=12)
    assert (later.first, later.last == ours.last) == (ours.first, False)
    assert issued(plan=PLAN, steps=13).last != ours.last
    assert issued(replace(SMALL, seed=1), PLAN, 12).first != ours.first


@pytest.mark.parametrize("recipe", [SMALL, replace(SMALL, task="text", num_layers=2, seed=7)], ids=["skills", "text"])
def test_trained_again_from_its_receipt_alone_a_run_comes_out_the_same(recipe):
    """With changes on the way; through the file and back; longer than the newest rows that are kept."""
    text = golden.TEXT if recipe.task == "text" else None
    theirs = from_json(to_json(issued(recipe, PLAN, 100, text)))
    made = []
    mine = again.train(theirs, text, made.append)
    assert (mine.first, mine.last, mine.settings, mine.schedule) == (
        *(theirs.first, theirs.last),
        *(theirs.settings, theirs.schedule),
    )
    assert sum(made) == 100
    assert (mine.versions, mine.machine) == (machine.versions(), machine.kind("cpu"))


@pytest.mark.exact
def test_a_twin_in_a_stack_has_the_receipt_of_the_run_alone():
    knobs = [SIGN, replace(SIGN, u=0.1)]
    twins, history = Twins(SMALL, knobs), History(1, 8, 64)
    for shots in [twins.observe()] + [twins.step(knobs) for _ in range(6)]:
        history.append(shots[1], version=5)
    assert issue(SMALL, [(0, knobs[1])], history.since(-1)[1], **CPU) == issued(plan=[(0, knobs[1])], steps=6)


@pytest.mark.skipif(available_devices() != ["cpu"], reason="there is another device here")
def test_a_device_that_is_not_here_is_replaced_by_one_that_is():
    theirs = replace(issued(), device="cuda", settings=issued().settings | {"device": "cuda"})
    mine = again.train(theirs, None, lambda made: None)
    assert (mine.device, mine.last) == (available_devices()[0], theirs.last)
    assert f"The device is {mine.device} here and cuda in the receipt." in differences(mine, theirs)


def test_a_run_that_diverges_here_has_a_receipt_of_fewer_steps(monkeypatch):
    from moeviz.engine import TrainingDiverged

    step = Engine.step

    def diverge(self, knobs):
        if self.step_number == 5:
            raise TrainingDiverged("Training diverged at step 6.")
        return step(self, knobs)

    theirs = issued(plan=PLAN, steps=12)
    monkeypatch.setattr(Engine, "step", diverge)
    mine = again.train(theirs, None, lambda made: None)
    assert (mine.steps, mine.schedule) == (5, theirs.schedule[:1])
    assert "There are 5 steps here and 12 in the receipt." in differences(mine, theirs)


def test_the_schedule_follows_from_the_rows_of_a_history():
    versions = {number: knobs for number, (_, knobs) in enumerate(PLAN)} | {3: Knobs()}
    assert plan_of(rows_of(SMALL, PLAN, 12), versions) == PLAN


def test_changes_that_a_thinned_history_does_not_place_exactly_are_not_guessed():
    """Of two changes in one bucket of rows a history keeps the first: found out by a receipt that did not check."""
    versions = {number: knobs for number, (_, knobs) in enumerate(PLAN)}
    with pytest.raises(SettingsError, match=r"at which step after \d+ and up to \d+ its settings were changed"):
        plan_of(rows_of(SMALL, PLAN, 200), versions)
    assert plan_of(rows_of(SMALL, [PLAN[0], (180, PLAN[1][1])], 200), versions) == [PLAN[0], (180, PLAN[1][1])]


def test_settings_that_came_back_at_once_are_no_change():
    ours = issue(SMALL, [(0, SIGN), (2, SIGN)], rows_of(SMALL, [(0, SIGN)], 3), **CPU)
    assert ours.schedule == ()


def test_a_run_whose_first_step_is_gone_has_no_receipt():
    with pytest.raises(SettingsError, match="has no receipt"):
        issue(SMALL, [(0, SIGN)], rows_of(SMALL, [(0, SIGN)], 3)[1:], **CPU)


# --- its settings ----------------------------------------------------------------------------------------------------


@st.composite
def any_settings(draw):
    recipe = replace(
        draw(st.sampled_from([Recipe(), Recipe(task="text", d_model=48, num_layers=2), Recipe(task="text")])),
        seed=draw(st.integers(0, 2**31 - 1)),
        shared_experts=draw(st.integers(0, 4)),
    )
    knobs = replace(
        draw(st.sampled_from([preset.knobs for preset in PRESETS.values()])),
        u=draw(st.floats(0, 1)),
        learning_rate=draw(st.floats(0, 1)),
        norm_topk=draw(st.booleans()),
        **{draw(st.sampled_from(sorted(LOSS_WEIGHTS.values()))): draw(st.floats(0, 100))},
    )
    return recipe, knobs


@given(any_settings())
def test_settings_come_back_to_the_bit(settings):
    recipe, knobs = settings
    rows = np.zeros(2, record_dtype(recipe.num_layers, recipe.num_experts))
    rows["step"] = 0, 9
    theirs = from_json(to_json(issue(recipe, [(0, Knobs()), (3, knobs), (5, Knobs())], rows, **CPU)))
    assert theirs.plan() == (recipe, [(0, Knobs()), (3, knobs), (5, Knobs())])
    assert theirs.seed == recipe.seed


def test_the_link_asks_the_page_for_the_same_settings():
    recipe, knobs = replace(SMALL, task="text", seed=4), PRESETS["deepseek_v2"].knobs
    rows = np.zeros(1, record_dtype(1, 8))
    link = issue(recipe, [(0, knobs)], rows, **CPU).link
    asked = dict(urllib.parse.parse_qsl(link.removeprefix("?"), strict_parsing=True))
    assert fields.from_link(asked) == (recipe, knobs, [])


# --- what is refused -------------------------------------------------------------------------------------------------


SOUND = json.loads(to_json(issued(plan=PLAN, steps=12)))


def told(**changes) -> str:
    return json.dumps(SOUND | changes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "This is no receipt of moeviz, or it is damaged."),
        (b"\xff\xfe", "This is no receipt"),
        ("[]", "This is no receipt"),
        ("{}", "This is no receipt"),
        ("[" * 100_000, "This is no receipt"),
        ("9" * 10_000, "This is no receipt"),
        (" " * 300_000, "This is too long for a receipt: 300,000 characters"),
        (told()[:-40], "This is no receipt"),
        (told(moeviz_receipt=2), "This receipt has format 2 and this version of moeviz reads 1. Check it with the"),
        (told(moeviz_receipt="\x1b[2J" * 99), "This receipt has format \N{REPLACEMENT CHARACTER}[2J"),
        (told(code="import os"), "This receipt has an unknown part code."),
        (told(seed=8), "This receipt's seed and settings contradict each other."),
        (told(link="?u=1"), "This receipt's link and settings contradict each other."),
        (told(steps=-1), "This receipt's steps cannot be read."),
        (told(steps=10**12), "This receipt's steps cannot be read."),
        (told(steps=True), "This receipt's steps cannot be read."),
        (told(steps=12.0), "This receipt's steps cannot be read."),
        (told(first="0" * 63), "This receipt's first cannot be read."),
        (told(last="0" * 64 + "\n"), "This receipt's last cannot be read."),
        (told(last=None), "This receipt's last cannot be read."),
        (told(text="hello"), "This receipt's text cannot be read."),
        (told(text="0" * 64), "The receipt names a text and a task that reads none."),
        (told(device=["cpu"]), "This receipt's device cannot be read."),
        (told(machine={"architecture": "x" * 101}), "This receipt's machine cannot be read."),
        (told(versions={"torch": 2}), "This receipt's versions cannot be read."),
        (told(settings={"u": 0.1}), "This receipt's settings cannot be read."),
        (told(settings={"u": "fast"}), "The receipt was written by moeviz 0.1.0: u=fast is not a number."),
        (told(settings={"speed": "9"}), "written by moeviz 0.1.0: There is no setting called 'speed'."),
        (told(settings={"\x1b[2J": "9"}), "There is no setting called"),
        (told(settings={"u": "\x1b[2J"}), "u=\N{REPLACEMENT CHARACTER}[2J is not a number."),
        (told(settings={"num_groups": "3"}), "16 experts cannot be split into 3 equal groups."),
        (told(settings={"task": "magic"}), "task=magic is not a choice."),
        (told(schedule={}), "This receipt's schedule cannot be read."),
        (told(schedule=[[3]]), "This receipt's schedule cannot be read."),
        (told(schedule=[[3, {"u": 1}]]), "This receipt's schedule cannot be read."),
        (told(schedule=[[True, {}]]), "This receipt's schedule cannot be read."),
        (told(schedule=[[0, {}]]), "The receipt has a change at step 0 after one at step 0, in 12 steps."),
        (told(schedule=[[4, {}], [4, {}]]), "The receipt has a change at step 4 after one at step 4"),
        (told(schedule=[[13, {"u": "1"}]]), "The receipt has a change at step 13 after one at step 0, in 12 steps."),
        (told(schedule=[[3, {"seed": "1"}]]), "The receipt changes seed, which is no knob."),
        (told(schedule=[[3, {"top_k": "64"}]]), "top_k=64 asks for more experts than there are."),
    ],
)
def test_what_is_damaged_foreign_or_hostile_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(SettingsError) as refusal:
        from_json(text)
    assert sentence in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "part", [name for name in json.loads(told()) if name not in ("moeviz_receipt", "link", "seed")]
)
def test_a_part_that_is_missing_is_named(part):
    whole = json.loads(told())
    del whole[part]
    with pytest.raises(SettingsError, match=f"lacks its part {part}"):
        from_json(json.dumps(whole))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(json.loads(told()))), json_values)
def test_whatever_stands_in_a_part_is_read_or_refused(part, value):
    try:
        read = from_json(told(**{part: value}))
    except SettingsError:
        return
    assert isinstance(read, Receipt)


def test_a_text_must_be_the_one_that_was_learned():
    text = replace(SMALL, task="text")
    theirs = issued(text, text=golden.TEXT)
    check_text(theirs, golden.TEXT)
    with pytest.raises(SettingsError, match="Bring it: --text FILE"):
        check_text(theirs, None)
    with pytest.raises(SettingsError, match="not the text that the run learned"):
        again.train(theirs, golden.TEXT + b".", lambda made: None)
    with pytest.raises(SettingsError, match="Leave --text out"):
        check_text(issued(), golden.TEXT)


# --- what differs ----------------------------------------------------------------------------------------------------


def test_equal_receipts_differ_in_nothing_and_another_version_says_in_what():
    ours = issued(plan=PLAN, steps=12)
    assert differences(ours, ours) == []
    theirs = replace(
        ours,
        versions=ours.versions | {"torch": "2.11.0"},
        machine={"architecture": "arm64", "capability": "default"},
        device="mps",
    )
    assert differences(ours, theirs) == [
        "The version of torch is 2.13.0 here and 2.11.0 in the receipt.",
        "The machine's architecture is x86_64 here and arm64 in the receipt.",
        "The machine's capability is unknown here and default in the receipt.",
        "The device is cpu here and mps in the receipt.",
    ]


def test_other_settings_changes_and_texts_are_differences_and_other_spellings_are_none():
    ours = issued(plan=[(0, SIGN)])
    assert differences(ours, replace(ours, settings=ours.settings | {"u": "3e-3"})) == []
    assert differences(ours, replace(ours, settings=ours.settings | {"u": "3e-2", "seed": "5"})) == [
        "Setting seed is the default here and 5 in the receipt.",
        "Setting u is the default here and 0.03 in the receipt.",
    ]
    assert "What was changed on the way" in differences(ours, replace(ours, schedule=((2, {"u": "1"}),)))[0]
    assert "3 steps here and 2 in" in differences(ours, replace(ours, steps=2))[0]
    text = issued(replace(SMALL, task="text"), text=golden.TEXT)
    assert "text that it learned" in differences(text, replace(text, text="0" * 64))[0]


def test_a_foreign_receipt_moves_no_cursor():
    theirs = replace(issued(), device="\x1b[2J", versions={"a\nb": "\r" * 99})
    assert all(sentence.isprintable() for sentence in differences(issued(), theirs))


def test_the_version_is_the_one_of_the_package():
    package = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert moeviz.__version__ == package["project"]["version"] == machine.versions()["moeviz"]


def test_the_kind_of_machine_is_known():
    assert {"architecture", "system", "capability", "algebra"} == machine.kind("cpu").keys()
    assert all(0 < len(value) <= receipts.LONGEST for value in machine.kind("cpu").values())
    assert set(machine.circumstances("cpu")) == {"versions", "device", "machine"}
    assert not set(KNOB_FIELDS) & set(CIRCUMSTANCES)


# --- the command -----------------------------------------------------------------------------------------------------

SET = ["--preset", "loss_free", "--set", "device=cpu", "--set", "num_experts=8", "--set", "tokens_per_step=64"]


def receipt_file(folder: Path, *arguments) -> Path:
    path = folder / "receipt.json"
    result = call("run", *SET, "--seed", 3, "--steps", 30, "--receipt", path, *arguments)
    assert result.exit_code == 0, result.stderr
    return path


def test_a_receipt_written_here_is_confirmed_here(tmp_path):
    path = receipt_file(tmp_path)
    theirs = json.loads(path.read_text())
    assert theirs["settings"] == {
        "num_experts": "8",
        "tokens_per_step": "64",
        "seed": "3",
        "device": "cpu",
        "bias_rule": "sign",
    }
    assert (theirs["seed"], theirs["steps"], theirs["schedule"], theirs["text"]) == (3, 30, [], None)
    result = call("check", path)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "First row (step 0): the same, to the bit.",
        "Last row (step 30): the same, to the bit.",
    ]


def test_a_replay_carries_the_receipt(tmp_path):
    page = tmp_path / "run.html"
    told = json.loads(receipt_file(tmp_path, "--out", page).read_text())
    assert told["last"] in page.read_text(encoding="utf-8")


def test_changes_on_the_way_are_made_again(tmp_path):
    path = tmp_path / "receipt.json"
    recipe = replace(SMALL, seed=5)
    path.write_text(to_json(issued(recipe, PLAN, 12)))
    told = json.loads(call("check", path, "--json").stdout)
    assert (told["same"], told["first"], told["last"]) == (True, True, True)
    assert told["here"]["schedule"] == json.loads(path.read_text())["schedule"]
    forged = json.loads(path.read_text())
    forged["schedule"][0][0] = 5
    path.write_text(json.dumps(forged))
    result = call("check", path)
    assert result.exit_code == 1
    assert "First row (step 0): the same, to the bit.\nLast row (step 12): not the same." in result.stdout


def test_what_differs_is_said_and_the_exit_code_is_1(tmp_path):
    path = receipt_file(tmp_path)
    told = json.loads(path.read_text())
    told["last"], told["versions"]["torch"] = "0" * 64, "2.11.0"
    path.write_text(json.dumps(told))
    result = call("check", path)
    assert result.exit_code == 1
    assert "Last row (step 30): not the same." in result.stdout
    assert f"The version of torch is {machine.versions()['torch']} here and 2.11.0 in the receipt." in result.stdout
    told["versions"] = machine.versions()
    path.write_text(json.dumps(told))
    assert "All that a receipt tells is the same here." in call("check", path).stdout


def test_a_text_of_ones_own_is_needed_again(tmp_path):
    text = tmp_path / "novel.txt"
    text.write_bytes(golden.TEXT)
    path = receipt_file(tmp_path, "--task", "text", "--text", text)
    assert "novel" not in path.read_text()
    assert "Bring it: --text FILE" in call("check", path).stderr
    assert call("check", path, "--text", text).exit_code == 0
    text.write_bytes(golden.TEXT[:-1])
    result = call("check", path, "--text", text)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "This is not the text that the run learned" in result.stderr


@pytest.mark.parametrize("content", [None, b"", b"\0" * 400_000, b'{"moeviz_receipt": 1}'])
def test_a_file_that_is_no_receipt_ends_with_one_sentence(content, tmp_path):
    path = tmp_path / "receipt.json"
    if content is not None:
        path.write_bytes(content)
    result = call("check", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
