"""Does a run go on from its file as if it had never stopped, and is every other file refused with a sentence?"""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from moeviz import checkpoint, toy
from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.engine import EVAL_EVERY, Engine, Twins
from tests import golden
from tests.test_engine import assert_same_run

SMALL = Recipe(device="cpu", num_experts=8, d_model=16, d_expert=12, tokens_per_step=128, sequence_length=16)
TEXT = replace(SMALL, task="text", num_layers=2, shared_experts=1, mtp_depth=1)
SIGN = Knobs(bias_rule="sign", u=0.01)
RUNS = {
    "plain": (SMALL, Knobs()),
    "bias": (SMALL, SIGN),
    "momentum": (SMALL, Knobs(bias_rule="momentum", u=0.01, probe_every=7, alpha=0.1)),
    "quantile": (SMALL, Knobs(bias_rule="quantile", gating="softmax")),
    "dropping": (SMALL, Knobs(token_dropping="expert", capacity_factor=1.0, bias_rule="sign", protected_share=0.3)),
    "text": (TEXT, replace(SIGN, num_groups=4, groups_kept=2)),
}


def begun(name: str = "bias", steps: int = 12) -> Engine:
    recipe, knobs = RUNS[name]
    engine = Engine(recipe, knobs, text_of(recipe))
    for _ in range(steps):
        engine.step(knobs)
    return engine


def text_of(recipe: Recipe) -> bytes | None:
    return golden.TEXT if recipe.task == "text" else None


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("steps", [0, 12, 130])
def test_a_loaded_run_goes_on_to_the_bit(name, steps, tmp_path):
    """Past evaluations, probes and the longest window, and under knobs that change."""
    engine = begun(name, steps)
    checkpoint.save(engine, tmp_path / "run.safetensors")
    loaded = checkpoint.load(tmp_path / "run.safetensors", text_of(engine.recipe))
    assert loaded.step_number == steps
    assert loaded.knobs == engine.knobs
    changed = replace(engine.knobs, u=0.1, learning_rate=1e-3)
    for knobs in [engine.knobs] * (EVAL_EVERY + 2) + [changed] * 3:
        assert_same_run([loaded.step(knobs)], [engine.step(knobs)])


def test_saving_does_not_disturb_the_run():
    engine, other = begun(), begun()
    before = checkpoint.to_bytes(engine)
    assert_same_run([engine.step(SIGN)], [other.step(SIGN)])
    assert before != checkpoint.to_bytes(engine)
    assert checkpoint.from_bytes(before).step_number == 12  # what was saved does not change with the run


def test_a_state_is_a_copy():
    engine = begun()
    state, copies = engine.state(), {name: value.clone() for name, value in engine.state().items()}
    engine.step(SIGN)
    assert all(torch.equal(state[name], copies[name]) for name in copies)
    assert not torch.equal(engine.state()["weight/head.weight"], copies["weight/head.weight"])


def test_a_checkpoint_can_be_begun_from_twice():
    data = checkpoint.to_bytes(begun())
    first, second = checkpoint.from_bytes(data), checkpoint.from_bytes(data)
    for _ in range(3):
        assert_same_run([first.step(SIGN)], [second.step(SIGN)])


def test_a_run_that_was_loaded_can_diverge_and_go_on():
    engine = checkpoint.from_bytes(checkpoint.to_bytes(begun(steps=130)))
    learned = engine.model.head.weight.detach().clone()
    with torch.no_grad():
        engine.model.head.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="Training diverged at step 131"):
        engine.step(SIGN)
    assert engine.step(replace(SIGN, learning_rate=1e-5)).step == 131
    torch.testing.assert_close(engine.model.head.weight.detach(), learned, rtol=0, atol=1e-4)


# --- twins -----------------------------------------------------------------------------------------------------------


def twins_begun(steps: int, knobs: list[Knobs]) -> Twins:
    twins = Twins(SMALL, knobs)
    for _ in range(steps):
        twins.step(knobs)
    return twins


PAIR = [Knobs(), SIGN]


@pytest.mark.exact
def test_loaded_twins_go_on_to_the_bit(tmp_path):
    twins = twins_begun(30, PAIR)
    checkpoint.save(twins, tmp_path / "twins.safetensors")
    loaded = checkpoint.load(tmp_path / "twins.safetensors")
    assert isinstance(loaded, Twins)
    assert [run.knobs for run in loaded.runs] == PAIR
    for _ in range(EVAL_EVERY + 2):
        assert_same_run(loaded.step(PAIR), twins.step(PAIR))


@pytest.mark.exact
def test_a_twin_of_a_file_goes_on_alone(tmp_path):
    twins = twins_begun(30, PAIR)
    checkpoint.save(twins, tmp_path / "twins.safetensors", ids=[0, 3])
    held = checkpoint.read(tmp_path / "twins.safetensors")
    assert (held.step, held.knobs) == (30, {0: Knobs(), 3: SIGN})
    engine = Engine(SMALL, SIGN)
    engine.restore(held.states[3])
    for _ in range(EVAL_EVERY + 2):
        shown = twins.step(PAIR)[1]
        assert_same_run([engine.step(SIGN)], [shown])


@pytest.mark.exact
def test_a_run_becomes_twins(tmp_path):
    """One state for both: the same until their knobs differ."""
    engine = begun("bias", 12)
    checkpoint.save(engine, tmp_path / "run.safetensors")
    twins = toy.resume(
        [str(tmp_path / "missing"), str(tmp_path / "run.safetensors")], {0: [(0, 99)], 2: [(2, 99), (0, 12)]}
    )
    other = replace(SIGN, u=0.1)
    alone = checkpoint.load(tmp_path / "run.safetensors")
    for _ in range(5):
        shown = twins.step({0: SIGN, 2: other})
        assert_same_run([shown[0], shown[2]], [engine.step(SIGN), alone.step(other)])


def test_twins_of_which_a_file_lacks_one_are_not_resumed_from_it(tmp_path):
    checkpoint.save(begun("bias", 12), tmp_path / "12")
    checkpoint.save(begun("bias", 5), tmp_path / "5")
    paths = [str(tmp_path / "12"), str(tmp_path / "5")]
    assert toy.resume(paths, {0: [(0, 99)]}).step_number == 12
    assert toy.resume(paths, {0: [(0, 99)], 1: [(1, 99), (0, 11)]}).step_number == 5
    assert toy.resume(paths, {0: [(0, 99)], 1: [(1, 99), (0, 4)]}) is None
    assert toy.resume(paths, {1: [(1, 99)]}) is None


def test_a_file_that_cannot_be_read_is_passed_over_if_another_will_do(tmp_path):
    checkpoint.save(begun("bias", 5), tmp_path / "5")
    (tmp_path / "broken").write_bytes(b"nonsense")
    good, bad = str(tmp_path / "5"), str(tmp_path / "broken")
    assert toy.resume([bad, good], {0: [(0, 99)]}).step_number == 5
    with pytest.raises(SettingsError, match="not a checkpoint"):
        toy.resume([bad, str(tmp_path / "none")], {0: [(0, 99)]})


@pytest.mark.exact
def test_what_is_left_of_twins_goes_on_to_the_bit():
    group, other = (toy.Group(SMALL, dict(zip((0, 4, 7), [*PAIR, Knobs(alpha=1.0)], strict=True))) for _ in range(2))
    knobs = {0: Knobs(), 4: SIGN, 7: Knobs(alpha=1.0)}
    for _ in range(10):
        group.step(knobs)
        other.step(knobs)
    for rest in (group.only([0, 7], knobs), group.only([7], knobs)):
        shown, expected = rest.step(knobs), other.step(knobs) if rest.ids == (0, 7) else None
        if expected:
            assert_same_run(list(shown.values()), [expected[0], expected[7]])
        assert list(shown) == list(rest.ids)


def test_states_of_different_steps_are_refused():
    twins, early = twins_begun(3, PAIR), twins_begun(2, PAIR)
    with pytest.raises(ValueError, match="of steps"):
        twins.restore_all([twins.states()[0], early.states()[1]])


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    checkpoint.save(begun(steps=1), path)
    before = path.read_bytes()

    def no_space(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(begun(steps=2), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.safetensors"]


def test_every_cut_of_a_file_is_refused_with_a_sentence():
    data = checkpoint.to_bytes(begun())
    for length in [*range(0, 200, 7), len(data) // 2, len(data) - 1]:
        with pytest.raises(SettingsError, match=r"^run\.st (is not a checkpoint|does not hold the run)"):
            checkpoint.from_bytes(data[:length], name="run.st")


def rewritten(data: bytes, **changes) -> bytes:
    """The same tensors under another description."""
    length = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["moeviz"])
    return safetensors.torch.save(safetensors.torch.load(data), metadata={"moeviz": json.dumps(about | changes)})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 1}, "checkpoint format 1 .* reads 2"),
        ({"recipe": {"colour": "red"}}, "settings that this version of moeviz does not know"),
        ({"recipe": {"num_experts": 7.5}}, "num_experts=7.5 is not int"),
        ({"knobs": {"zero": {}}}, "settings that this version of moeviz does not know"),
        ({"knobs": {}}, "does not hold the run that it describes"),
        ({"knobs": {"1": {}}}, "does not hold the run that it describes"),
        ({"knobs": None}, "settings that this version of moeviz does not know"),
        ({"recipe": {}}, "does not hold the run that it describes"),
        ({"text": "0" * 64}, "learned another text"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_with_a_sentence(changes, sentence):
    with pytest.raises(SettingsError, match=sentence):
        checkpoint.from_bytes(rewritten(checkpoint.to_bytes(begun()), **changes))


@pytest.mark.parametrize("name", ["weight/head.weight", "bias_LE", "data", "past_NLE", "step"])
def test_a_tensor_that_is_missing_or_has_another_shape_is_refused(name):
    data = checkpoint.to_bytes(begun())
    length = int.from_bytes(data[:8], "little")
    about = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = safetensors.torch.load(data)
    name = f"0/{name}"
    for spoiled in (tensors | {name: torch.zeros(3, 5, 2)}, {key: tensors[key] for key in tensors if key != name}):
        with pytest.raises(SettingsError, match="does not hold the run"):
            checkpoint.from_bytes(safetensors.torch.save(spoiled, metadata=about))


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04K\x01.", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"]
)
def test_what_is_no_checkpoint_is_refused(data):
    with pytest.raises(SettingsError, match="is not a checkpoint of moeviz"):
        checkpoint.from_bytes(data)


def test_another_text_than_it_began_with_is_refused():
    data = checkpoint.to_bytes(begun("text", 2))
    with pytest.raises(SettingsError, match="learned another text"):
        checkpoint.from_bytes(data, golden.TEXT + b"!")
    with pytest.raises(SettingsError, match="learned another text"):
        checkpoint.from_bytes(data)
