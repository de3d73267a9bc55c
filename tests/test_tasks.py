"""Is the data what the screen says it is: same seed same data, held out means held out, any text will do?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Generator

from moeviz.config import HELD_OUT_SHARE, TASK_DEFAULTS, Recipe, SettingsError
from moeviz.tasks import Batch, make_task
from moeviz.tasks import skills as skills_module
from moeviz.tasks.skills import HELD_OUT_SEED, LABEL_NOISE, NUM_SKILLS, ZIPF_EXPONENT
from moeviz.tasks.text import standard_library

SMALL = {"tokens_per_step": 256, "sequence_length": 16, "device": "cpu"}


def skills(seed: int = 0, **changes):
    return make_task(Recipe(seed=seed, **{**SMALL, **changes}), "cpu")


def text(source: bytes | None, **changes):
    return make_task(Recipe(task="text", **{**SMALL, **TASK_DEFAULTS["text"], **changes}), "cpu", source)


def rows(vectors: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in vectors.tolist()}


def assert_same(ours: Batch, theirs: Batch) -> None:
    """To the bit, and of the same kind of number."""
    for name in ("inputs", "targets", "domain_T", "token_id_T"):
        one, two = getattr(ours, name), getattr(theirs, name)
        assert one.dtype == two.dtype
        assert torch.equal(one, two), name


def assert_draws_the_same(task, spoken, seed: int) -> None:
    """Three batches in a row, and not a number drawn more or less than is spoken aloud."""
    ours, theirs = Generator().manual_seed(seed), Generator().manual_seed(seed)
    for _ in range(3):
        assert_same(task.batch(ours), spoken(theirs))
        assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("task", ["skills", "text"])
def test_a_batch_stays_as_it_was_when_the_next_is_drawn(task):
    made, draw = {"skills": skills, "text": lambda: text(None)}[task](), Generator().manual_seed(0)
    held_out, first = made.held_out, made.batch(draw)
    kept = [[column.clone() for column in columns(batch)] for batch in (held_out, first)]
    made.batch(draw)
    assert all(map(torch.equal, columns(held_out), kept[0]))
    assert all(map(torch.equal, columns(first), kept[1]))


def columns(batch: Batch) -> tuple[torch.Tensor, ...]:
    return batch.inputs, batch.targets, batch.domain_T, batch.token_id_T


# --- token ids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d_model", [4, 8, 32])
def test_a_skills_token_is_known_by_the_signs_of_its_first_eight_coordinates(d_model):
    batch = skills(d_model=d_model).held_out
    for row, token_id in zip(batch.inputs.tolist(), batch.token_id_T.tolist(), strict=True):
        assert token_id == sum(2**place for place, value in enumerate(row[:8]) if value > 0)
    assert len(set(batch.token_id_T.tolist())) > 3


def test_a_byte_of_text_is_its_own_token_id():
    batch = text(bytes(range(256)) * 20).held_out
    assert torch.equal(batch.token_id_T, batch.inputs)


# --- skills ----------------------------------------------------------------------------------------------------------


def spoken_batch(task, generator: Generator) -> Batch:
    """Draw skills, noise, label noise and an order, in this order; then one skill and one token after another."""
    tokens, d = task.held_out.inputs.shape
    skill_of = sorted(torch.multinomial(task.frequency_C, tokens, replacement=True, generator=generator).tolist())
    noise = torch.randn(tokens, d, generator=generator)
    label_noise = torch.randn(tokens, d, generator=generator)
    order = torch.randperm(tokens, generator=generator).tolist()
    answers = []
    for skill in range(NUM_SKILLS):
        of_skill = noise[[token for token in range(tokens) if skill_of[token] == skill]]
        answers += (of_skill @ task.w1_Cdd[skill]).tanh() @ task.w2_Cdd[skill]
    inputs = torch.stack([noise[token] + task.mean_Cd[skill_of[token]] for token in order])
    targets = torch.stack([answers[token] / task.scale + LABEL_NOISE * label_noise[token] for token in order])
    signs = [sum(2**place for place, value in enumerate(row[:8]) if value > 0) for row in inputs.tolist()]
    return Batch(inputs, targets, torch.tensor([skill_of[token] for token in order]), torch.tensor(signs))


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(("tokens", "d_model"), [(32, 32), (34, 4), (256, 12), (1024, 32), (512, 64)])
def test_a_batch_of_skills_is_drawn_as_is_spoken(tokens, d_model, grouped, monkeypatch):
    """To the bit, with a grouped product and without, and however few tokens a skill has."""
    if not grouped:
        monkeypatch.setattr(skills_module, "grouped_mm_works", lambda device_type: False)
    task = skills(seed=tokens, tokens_per_step=tokens, sequence_length=2, d_model=d_model)
    assert_same(task.held_out, spoken_batch(task, Generator().manual_seed(tokens + HELD_OUT_SEED)))
    assert_draws_the_same(task, lambda draw: spoken_batch(task, draw), seed=7)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("d_model", [8, 32])
def test_targets_have_about_unit_variance_so_that_the_loss_of_guessing_nothing_is_about_one(seed, d_model):
    task = skills(seed, tokens_per_step=4096, d_model=d_model)
    batch = task.batch(Generator().manual_seed(1))
    assert batch.inputs.shape == batch.targets.shape == (4096, d_model)
    assert float(batch.targets.var()) == pytest.approx(1.0, abs=0.08)
    assert float(task.loss(torch.zeros_like(batch.targets), batch.targets)) == pytest.approx(1.0, abs=0.08)


def test_the_loss_is_the_mean_of_squared_differences():
    assert float(skills().loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]]))) == 2.0


def test_the_same_seed_gives_the_same_task_and_the_same_batches_and_another_seed_others():
    first, again, other = skills(3), skills(3), skills(4)
    ours, theirs = Generator().manual_seed(9), Generator().manual_seed(9)
    for _ in range(3):
        one, two = first.batch(ours), again.batch(theirs)
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.targets, two.targets)
        assert torch.equal(one.domain_T, two.domain_T)
    assert torch.equal(first.held_out.inputs, again.held_out.inputs)
    assert not torch.equal(other.held_out.inputs, first.held_out.inputs)
    assert not torch.equal(
        other.batch(Generator().manual_seed(9)).targets, first.batch(Generator().manual_seed(9)).targets
    )


def test_making_a_task_or_a_batch_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    for task in (skills(), text(None)):
        task.batch(Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_held_out_token_ever_appears_in_training():
    task, draw = skills(), Generator().manual_seed(2)
    held_out = rows(task.held_out.inputs)
    assert len(held_out) == 256
    for _ in range(20):
        assert held_out.isdisjoint(rows(task.batch(draw).inputs))


def test_skills_are_as_frequent_as_zipf_says():
    task = skills(tokens_per_step=8192)
    counts = np.bincount(task.batch(Generator().manual_seed(0)).domain_T.numpy(), minlength=NUM_SKILLS)
    weights = [1 / (number**ZIPF_EXPONENT) for number in range(1, NUM_SKILLS + 1)]
    for skill, weight in enumerate(weights):
        share = weight / sum(weights)
        error = (share * (1 - share) * 8192) ** 0.5
        assert abs(counts[skill] - share * 8192) < 5 * error
    assert counts.sum() == 8192


def test_every_sequence_mixes_skills():
    domain = skills(tokens_per_step=4096).batch(Generator().manual_seed(0)).domain_T.view(-1, 16)
    assert min(len(set(sequence.tolist())) for sequence in domain) >= 4


def test_a_target_is_its_own_skill_s_network_of_the_noise_and_inputs_share_one_direction():
    task = skills(tokens_per_step=2048)
    batch = task.batch(Generator().manual_seed(0))
    squared_error = 0.0
    for token in range(200):
        skill = int(batch.domain_T[token])
        noise = batch.inputs[token] - task.mean_Cd[skill]
        answer = ((noise @ task.w1_Cdd[skill]).tanh() @ task.w2_Cdd[skill]) / task.scale
        squared_error += float((batch.targets[token] - answer).square().mean())
    assert squared_error / 200 == pytest.approx(0.05**2, rel=0.1)
    common = batch.inputs.mean(0)
    assert float(common.norm()) / 32**0.5 > 2  # what makes routing collapse
    assert float((batch.inputs @ common > 0).float().mean()) == 1.0


@pytest.mark.parametrize("task", ["skills", "text", "own text"])
def test_domains_are_numbered_below_the_number_that_is_told(task):
    made = {"skills": skills, "text": lambda: text(None), "own text": lambda: text(COUNTING)}[task]()
    assert made.num_domains == {"skills": NUM_SKILLS, "text": 2, "own text": 1}[task]
    for batch in (made.held_out, made.batch(Generator().manual_seed(0))):
        assert batch.domain_T.shape == (256,)
        assert set(batch.domain_T.tolist()) == set(range(made.num_domains))


# --- text ------------------------------------------------------------------------------------------------------------

COUNTING = bytes(range(256)) * 40


def spoken_windows(corpora: list[bytes], sequences: int, length: int, generator: Generator) -> Batch:
    """One window after another, the kinds in turn, each from a place where it fits into its text."""
    inputs, targets, domains = b"", b"", []
    for number in range(sequences):
        corpus = corpora[number % len(corpora)]
        start = int(torch.randint(len(corpus) - length, (), generator=generator))
        inputs += corpus[start : start + length]
        targets += corpus[start + 1 : start + length + 1]
        domains += [number % len(corpora)] * length
    byte_T = torch.tensor(list(inputs))
    return Batch(byte_T, torch.tensor(list(targets)), torch.tensor(domains), byte_T)


@pytest.mark.parametrize(("sequences", "length"), [(1, 32), (5, 16), (64, 2), (8, 256)])
@pytest.mark.parametrize("own", [None, COUNTING, bytes(2571)])
def test_windows_of_text_are_drawn_as_is_spoken(own, sequences, length):
    task = text(own, sequence_length=length, tokens_per_step=sequences * length, seed=3)
    whole = standard_library() if own is None else [own]
    cuts = [int(len(corpus) * (1 - HELD_OUT_SHARE)) for corpus in whole]
    training = [corpus[:cut] for corpus, cut in zip(whole, cuts, strict=True)]
    ends = [corpus[cut:] for corpus, cut in zip(whole, cuts, strict=True)]
    draw = Generator().manual_seed(3 + HELD_OUT_SEED)
    assert_same(task.held_out, spoken_windows(ends, sequences, length, draw))
    assert_draws_the_same(task, lambda draw: spoken_windows(training, sequences, length, draw), seed=5)


def test_the_target_of_a_byte_is_the_byte_after_it():
    batch = text(COUNTING).batch(Generator().manual_seed(0))
    assert batch.inputs.shape == batch.targets.shape == (256,)
    assert torch.equal(batch.targets, (batch.inputs + 1) % 256)
    inputs, targets = batch.inputs.view(-1, 16), batch.targets.view(-1, 16)
    assert torch.equal(targets[:, :-1], inputs[:, 1:])


def test_held_out_windows_come_from_the_last_tenth_and_training_from_the_rest():
    places = np.arange(10_000)
    numbered = text(b"".join(int(place // 100).to_bytes(1, "big") for place in places))  # the byte tells the place
    assert int(numbered.held_out.inputs.min()) >= 90
    draw = Generator().manual_seed(0)
    seen = torch.cat([numbered.batch(draw).targets for _ in range(60)])
    assert int(seen.max()) <= 89
    assert len(set(seen.tolist())) == 90  # all of the training text is used
    assert int(numbered.held_out.targets.max()) == 99


def test_the_two_kinds_of_the_standard_library_alternate_and_are_known():
    code, prose = standard_library()
    task = text(None)
    batch = task.batch(Generator().manual_seed(0))
    assert batch.domain_T.view(-1, 16)[:, 0].tolist() == [0, 1] * 8
    for sequence, kind in zip(
        batch.inputs.view(-1, 16).tolist(), batch.domain_T.view(-1, 16)[:, 0].tolist(), strict=True
    ):
        assert bytes(sequence) in (code, prose)[kind]


def test_the_standard_library_is_found_and_its_docstrings_are_not_left_in_its_code():
    code, prose = standard_library()
    assert len(code) > 300_000
    assert len(prose) > 100_000
    assert b"import " in code
    assert b"Abstract Base Classes (ABCs) according to PEP 3119." in prose
    assert b"Abstract Base Classes (ABCs) according to PEP 3119." not in code


def test_the_same_seed_gives_the_same_windows_and_another_seed_others():
    assert torch.equal(text(None, seed=1).held_out.inputs, text(None, seed=1).held_out.inputs)
    assert not torch.equal(text(None, seed=1).held_out.inputs, text(None, seed=2).held_out.inputs)


@settings(max_examples=25)
@given(st.binary(min_size=0, max_size=60), st.integers(1, 400), st.sampled_from([2, 16, 64]))
@example(b"\0", 400, 16)
@example(b"\xff\xfe", 200, 16)
def test_text_of_any_bytes_is_taken_or_refused_for_its_length_alone(piece, times, length):
    source = piece * times
    needed = 10 * (length + 1) + 1
    if len(source) < needed:
        with pytest.raises(SettingsError, match=f"has {len(source):,} bytes.*at least {needed:,}"):
            text(source, sequence_length=length, tokens_per_step=64)
        return
    task = text(source, sequence_length=length, tokens_per_step=64)
    for batch in (task.held_out, task.batch(Generator().manual_seed(0))):
        for inputs, targets in zip(batch.inputs.view(-1, length), batch.targets.view(-1, length), strict=True):
            assert bytes(inputs.tolist()) + bytes(targets.tolist()[-1:]) in source
        assert set(batch.domain_T.tolist()) == {0}


@pytest.mark.parametrize("length", [2, 3, 9, 32, 99, 127, 200, 256])
def test_the_shortest_text_that_is_promised_to_do_does(length):
    needed = 10 * (length + 1) + 1
    recipe = {"sequence_length": length, "tokens_per_step": length * -(-32 // length)}
    task = text(bytes(needed), **recipe)
    assert not task.held_out.inputs.any()
    with pytest.raises(SettingsError, match="Bring a longer text or choose a shorter sequence_length"):
        text(bytes(needed - 1), **recipe)


def test_no_text_at_all_is_refused_and_not_replaced():
    with pytest.raises(SettingsError, match="has 0 bytes"):
        text(b"")


def test_the_loss_is_the_cross_entropy_in_nats():
    assert float(text(COUNTING).loss(torch.zeros(4, 256), torch.tensor([1, 2, 3, 4]))) == pytest.approx(np.log(256))
