"""Do the measures say what their names say, and is a fair router as uneven as an independent simulation of one?"""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeviz.metrics import (
    DEAD_WINDOW,
    GLOBAL_WINDOW,
    Figures,
    Ledger,
    dead_experts,
    fair_router,
    fan_out,
    interference,
    joint_counts,
    max_vio,
    max_vio_global,
    mean_and_worst,
    mutual_information,
    relative_load,
    specialisation,
    straggler,
)

LOADS = st.lists(st.integers(0, 2000), min_size=2, max_size=40)


@given(LOADS)
def test_max_vio_is_the_excess_of_the_busiest_expert_over_the_mean(load):
    mean = sum(load) / len(load)
    expected = (max(load) - mean) / mean if sum(load) else 0.0
    assert float(max_vio(np.array(load))) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_max_vio_of_several_layers_is_one_number_each():
    assert max_vio(np.array([[4, 4], [8, 0], [0, 0], [3, 1]])).tolist() == [0.0, 1.0, 0.0, 0.5]


def test_total_collapse_onto_k_experts_is_the_largest_violation_there_is():
    assert float(max_vio(np.array([100, 100] + [0] * 14))) == 16 / 2 - 1


@given(LOADS)
def test_an_expert_is_dead_under_one_percent_of_the_mean_load(load):
    dead = sum(1 for count in load if count * 100 * len(load) < sum(load))
    assert int(dead_experts(np.array(load))) == dead


def test_one_percent_exactly_is_alive_and_without_any_load_nobody_is_dead():
    assert dead_experts(np.array([[1, 199], [0, 200], [0, 0]])).tolist() == [0, 1, 0]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32 - 1), st.data())
def test_fan_out_is_the_mean_number_of_groups_a_token_touches(groups, size, tokens, seed, data):
    experts = groups * size
    top_k = data.draw(st.integers(1, experts))
    generator = np.random.default_rng(seed)
    chosen = np.array([generator.choice(experts, top_k, replace=False) for _ in range(tokens)])
    touched = [len({expert // size for expert in token}) for token in chosen.tolist()]
    assert fan_out(chosen, experts, groups) == pytest.approx(sum(touched) / tokens)


def test_no_tokens_touch_as_few_groups_as_there_are_to_touch():
    """One, as on a single node: the same as in an empty batch of a router without groups."""
    nobody = np.zeros((0, 2), dtype=np.int64)
    assert fan_out(nobody, 8, 4) == fan_out(nobody, 8, 1) == 1.0


# --- over batches and layers -----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(*[st.integers(0, 500)] * 4), min_size=1, max_size=12))
def test_global_max_vio_is_that_of_the_summed_load(batches):
    total = [sum(column) for column in zip(*batches, strict=True)]
    mean = sum(total) / 4
    expected = (max(total) - mean) / mean if mean else 0.0
    assert max_vio_global(np.array(batches)[:, None]).tolist() == [pytest.approx(expected)]


def test_global_max_vio_counts_past_sixteen_bits():
    """As a history keeps loads."""
    loads = np.full((9, 1, 2), 8192, dtype=np.uint16)
    loads[:, 0, 1] = 4096
    assert max_vio_global(loads).tolist() == pytest.approx([1 / 3])


@given(st.integers(2, 8), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_batches_of_one_size_are_globally_no_less_balanced_than_one_by_one(experts, batches, seed):
    """What one batch lacks another may have."""
    loads = np.random.default_rng(seed).multinomial(100, np.ones(experts) / experts, size=(batches, 2))
    assert (max_vio_global(loads) <= max_vio(loads).mean(0) + 1e-12).all()


def test_layers_are_told_by_their_mean_and_their_worst():
    assert mean_and_worst(np.array([1.0, 5.0, math.nan, 3.0])) == (3.0, 5.0)
    assert all(math.isnan(value) for value in mean_and_worst(np.array([math.nan])))


# --- devices ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_the_straggler_is_the_busiest_device_over_the_mean(devices, size, data):
    """And E4: no slower than the busiest expert would make it, were it a device."""
    load = data.draw(st.lists(st.integers(0, 900), min_size=devices * size, max_size=devices * size))
    work = [sum(load[device * size : device * size + size]) for device in range(devices)]
    expected = max(work) / (sum(work) / devices) if sum(work) else 1.0
    factor = float(straggler(np.array(load), devices))
    assert factor == pytest.approx(expected, rel=1e-12)
    assert 1 <= factor <= 1 + float(max_vio(np.array(load))) + 1e-12
    assert factor <= devices + 1e-12


def test_devices_hold_contiguous_blocks_and_each_layer_has_a_straggler_of_its_own():
    assert straggler(np.array([[4, 4, 0, 0], [4, 0, 4, 0], [0, 0, 0, 0]]), 2).tolist() == [2.0, 1.0, 1.0]


def test_experts_that_cannot_be_shared_equally_have_no_straggler():
    assert np.isnan(straggler(np.ones((3, 10)), 4)).all()
    assert straggler(np.ones((3, 10)), 4).shape == (3,)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_what_a_full_device_drops_is_bounded_by_the_straggler(seed, tokens):
    """E4 at device level: (factor - 1) / D <= dropped share at capacity factor 1 <= 1 - 1 / factor."""
    load = np.random.default_rng(seed).multinomial(tokens * 12, np.random.default_rng(seed).dirichlet(np.ones(8)))
    work = load.reshape(4, 2).sum(-1)
    dropped = np.maximum(work - tokens * 12 / 4, 0).sum() / (tokens * 12)
    factor = float(straggler(load, 4))
    assert (factor - 1) / 4 - 1e-12 <= dropped <= 1 - 1 / factor + 1e-12


# --- a run's figures -------------------------------------------------------------------------------------------------


def spoken_figures(loads: list[np.ndarray], kept: np.ndarray, devices: int) -> Figures:
    """Of the last of these loads: what each measure says of the whole window that it looks at."""
    load = loads[-1]
    pairs, left = load.sum(-1).ravel().tolist(), kept.sum(-1).ravel().tolist()
    dropped = [1 - some / all_ if all_ else 0.0 for all_, some in zip(pairs, left, strict=True)]
    return Figures(
        max_vio_L=max_vio(load),
        max_vio_global_L=max_vio(np.sum(loads[-GLOBAL_WINDOW:], axis=0)),
        straggler_L=straggler(load, devices),
        dead_experts_L=dead_experts(np.sum(loads[-DEAD_WINDOW:], axis=0)),
        dropped_fraction_L=np.reshape(dropped, load.shape[:-1]),
    )


def assert_same_figures(ours: Figures, theirs: Figures) -> None:
    """To the bit, in the same shape and of the same kind of number."""
    for name in Figures.__slots__:
        one, two = getattr(ours, name), getattr(theirs, name)
        assert one.shape == two.shape
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two, err_msg=name)


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 8),
    st.integers(1, 12),
    st.integers(1, GLOBAL_WINDOW + 15),
    st.sampled_from([1, 2, 40, 8192]),
    st.integers(0, 2**32 - 1),
)
def test_a_ledger_says_step_by_step_what_the_measures_say_of_their_windows(twins, layers, experts, steps, most, seed):
    """Also without any load, with unused experts, where D does not divide E, and of steps that never become past."""
    draw, shape = np.random.default_rng(seed), (*twins, layers, experts)
    ledger, past, busy = Ledger(*shape), [], draw.random(shape) < 0.7
    for step in range(steps):
        if step % 50 == 0:
            busy = draw.random(shape) < 0.7  # experts that live for many steps, and die
        load = draw.integers(0, most + 1, shape) * busy * (draw.random(shape[:-1]) < 0.9)[..., None]
        kept, devices = draw.integers(0, load + 1), int(draw.integers(1, experts + 2))
        assert_same_figures(ledger.figures(load, kept, devices), spoken_figures([*past, load], kept, devices))
        if draw.random() < 0.95:
            ledger.advance()
            past.append(load.copy())
            load[...] = 7  # what a ledger was shown is the caller's to change


def test_a_ledger_s_windows_end_after_exactly_as_many_steps_as_they_are_long():
    """One step on one expert, then all on the other: the first is alive as long as its step is in the window."""
    ledger, first, later = Ledger(1, 2), np.array([[100, 0]]), np.array([[0, 100]])
    seen = []
    for load in [first] + [later] * (GLOBAL_WINDOW + 1):
        seen.append(ledger.figures(load, load, 1))
        ledger.advance()
    assert [int(figures.dead_experts_L[0]) for figures in seen] == [1] + [0] * (DEAD_WINDOW - 1) + [1] * (
        GLOBAL_WINDOW - DEAD_WINDOW + 2
    )
    full = [float(figures.max_vio_global_L[0]) == 1.0 for figures in seen]
    assert full == [True] + [False] * (GLOBAL_WINDOW - 1) + [True] * 2


def test_a_step_becomes_past_once():
    ledger = Ledger(1, 2)
    with pytest.raises(TypeError):
        ledger.advance()
    ledger.figures(np.ones((1, 2), int), np.ones((1, 2), int), 1)
    ledger.advance()
    with pytest.raises(TypeError):
        ledger.advance()


# --- domains ---------------------------------------------------------------------------------------------------------

JOINTS = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1), st.floats(0.05, 5)).map(
    lambda drawn: np.random.default_rng(drawn[2]).poisson(drawn[3], drawn[:2]) + np.eye(*drawn[:2], dtype=int)
)


def spoken_entropy(counts) -> float:
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts if count)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32 - 1), st.data())
def test_pairs_are_counted_by_expert_and_domain(experts, domains, tokens, seed, data):
    top_k = data.draw(st.integers(1, experts))
    draw = np.random.default_rng(seed)
    chosen = np.array([draw.choice(experts, top_k, replace=False) for _ in range(tokens)])
    domain, valid = draw.integers(0, domains, tokens), draw.random((tokens, top_k)) < 0.7
    for mask in (None, valid):
        counted = joint_counts(chosen, domain, experts, domains, mask)
        spoken = Counter(
            (int(chosen[token, slot]), int(domain[token]))
            for token in range(tokens)
            for slot in range(top_k)
            if mask is None or mask[token, slot]
        )
        assert counted.tolist() == [[spoken[expert, kind] for kind in range(domains)] for expert in range(experts)]


@given(JOINTS)
def test_mutual_information_is_what_knowing_the_expert_takes_off_the_doubt_about_the_domain(joint):
    """H(domain) - H(domain | expert), and the same the other way round; at most the smaller entropy."""
    total = joint.sum()
    doubt = spoken_entropy(joint.sum(0).tolist())
    left = sum(row.sum() / total * spoken_entropy(row.tolist()) for row in joint if row.sum())
    information = float(mutual_information(joint))
    assert information == pytest.approx(doubt - left, abs=1e-9)
    assert information == pytest.approx(float(mutual_information(joint.T)), abs=1e-9)
    assert 0 <= information <= min(doubt, spoken_entropy(joint.sum(1).tolist())) + 1e-9
    assert information == pytest.approx(float(mutual_information(7 * joint)), abs=1e-9)
    if doubt > 1e-12:
        assert float(specialisation(joint)) == pytest.approx(information / doubt, abs=1e-9)
        assert 0 <= float(specialisation(joint)) <= 1
    else:
        assert math.isnan(float(specialisation(joint)))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9), st.lists(st.integers(1, 40), min_size=2, max_size=9))
def test_independent_experts_tell_nothing(experts, domains):
    experts[0] += 1
    joint = np.outer(experts, domains)
    assert float(mutual_information(joint)) == pytest.approx(0, abs=1e-12)
    assert float(specialisation(joint)) == pytest.approx(0, abs=1e-12)


def test_an_expert_for_each_domain_tells_everything_and_so_do_two():
    assert float(specialisation(np.diag([3, 1, 9]))) == pytest.approx(1)
    assert float(specialisation(np.array([[5, 0], [2, 0], [0, 1]]))) == pytest.approx(1)
    assert float(mutual_information(np.diag([5, 5, 5, 5]))) == pytest.approx(math.log(4))


def test_a_collapsed_router_is_no_specialist_although_its_second_expert_has_one_domain_only():
    joint = np.array([[99, 100], [1, 0]])
    assert float(specialisation(joint)) < 0.01
    assert float(mutual_information(joint)) / spoken_entropy([199, 1]) > 0.1  # the other normalisation


def test_each_layer_has_a_specialisation_of_its_own_and_nothing_tells_nothing():
    joint = np.array([[[4, 0], [0, 4]], [[2, 2], [2, 2]], [[3, 0], [5, 0]], [[0, 0], [0, 0]]])
    np.testing.assert_allclose(specialisation(joint), [1, 0, math.nan, math.nan], atol=1e-12)


@given(JOINTS, st.integers(0, 2**32 - 1))
def test_what_a_layer_tells_does_not_depend_on_the_layers_beside_it(joint, seed):
    layers = np.stack([joint, np.random.default_rng(seed).permutation(joint.ravel()).reshape(joint.shape)])
    for measure in (mutual_information, specialisation):
        np.testing.assert_allclose(measure(layers), [measure(layer) for layer in layers], atol=1e-12)


def test_experts_never_tell_more_than_there_is_to_know_not_even_by_rounding():
    shares = [float(specialisation(np.diag([a, b, c]))) for a in (1, 2, 3) for b in (5, 7, 9) for c in (5, 9, 10)]
    assert max(shares) == 1.0


def test_by_chance_alone_information_lies_above_zero_as_far_as_is_said():
    draw, experts, domains, pairs = np.random.default_rng(0), 6, 5, 4000
    found = [
        float(mutual_information(draw.multinomial(pairs, np.ones(30) / 30).reshape(experts, domains)))
        for _ in range(100)
    ]
    assert statistics.mean(found) == pytest.approx((experts - 1) * (domains - 1) / (2 * pairs), rel=0.1)


@given(JOINTS)
def test_relative_loads_of_a_domain_average_to_one(joint):
    experts, domains = joint.shape
    relative = relative_load(joint)
    for domain in range(domains):
        share = [joint[expert, domain] for expert in range(experts)]
        if not sum(share):
            assert np.isnan(relative[:, domain]).all()
            continue
        assert relative[:, domain].mean() == pytest.approx(1)
        assert relative[:, domain].tolist() == pytest.approx([count / (sum(share) / experts) for count in share])


# --- interference ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_interference_is_a_ratio_of_lengths_and_the_cosine_between_them(size, seed, factor):
    draw = np.random.default_rng(seed)
    added, task = (draw.normal(size=size).astype(np.float32) for _ in range(2))
    ratio, cosine = interference(np.float32(factor) * added, task)
    lengths = [math.sqrt(sum(float(x) ** 2 for x in vector)) for vector in (added, task)]
    dot = sum(float(a) * float(t) for a, t in zip(added, task, strict=True))
    assert ratio == pytest.approx(factor * lengths[0] / lengths[1], rel=1e-4)
    assert cosine == pytest.approx(dot / lengths[0] / lengths[1], abs=1e-4)


def test_gradients_that_agree_oppose_or_have_nothing_to_do_with_each_other():
    right, up = np.array([2.0, 0.0], np.float32), np.array([0.0, 5.0], np.float32)
    assert interference(right, right) == (1.0, 1.0)
    assert interference(3 * right, -right) == (3.0, -1.0)
    assert interference(right, up) == (pytest.approx(0.4), 0.0)


def test_without_a_gradient_there_is_no_angle():
    zero, some, none = np.zeros(2), np.ones(2), np.zeros(0)
    assert interference(zero, some)[0] == 0.0
    assert interference(some, zero)[0] == math.inf
    for added, task in ((zero, some), (some, zero), (zero, zero), (none, none)):
        assert math.isnan(interference(added, task)[1])
    assert interference(zero, 1e-3 * some)[0] == 0.0, "a small gradient is one too"
    assert interference(1e-3 * some, zero)[0] == math.inf
    assert math.isnan(interference(zero, zero)[0])
    assert math.isnan(interference(none, none)[0])


def test_a_cosine_is_never_past_one_not_even_by_rounding():
    draw = np.random.default_rng(0)
    vectors = [draw.normal(size=3) for _ in range(200)]
    assert max(interference(vector, vector)[1] for vector in vectors) == 1.0
    assert min(interference(vector, -vector)[1] for vector in vectors) == -1.0


def test_lengths_past_the_square_root_of_the_largest_float_are_still_measured():
    huge, plain = np.array([3e30, 4e30], np.float32), np.array([0.0, 5.0], np.float32)
    assert interference(huge, plain) == (pytest.approx(1e30), pytest.approx(0.8))
    assert interference(plain, huge) == (pytest.approx(1e-30), pytest.approx(0.8))
    ratio, cosine = interference(np.array([3e30, 4e30], np.float32), np.array([5e-30, 0], np.float32))
    assert ratio == pytest.approx(1e60)
    assert cosine == pytest.approx(0.6)


# --- the fair router -------------------------------------------------------------------------------------------------


def simulated(tokens: int, top_k: int, experts: int, draws: int) -> tuple[list[float], list[float]]:
    """Every token picks K different experts out of a hat: MaxVio and smallest relative load of each draw."""
    hat, violations, smallest = random.Random(1234), [], []
    for _ in range(draws):
        load = [0] * experts
        for _ in range(tokens):
            for expert in hat.sample(range(experts), top_k):
                load[expert] += 1
        mean = tokens * top_k / experts
        violations.append((max(load) - mean) / mean)
        smallest.append(min(load) / mean)
    return violations, smallest


def quantile_error(values: list[float], share: float) -> float:
    """Five standard errors of a sample quantile, read off the sample itself."""
    ordered, n = sorted(values), len(values)
    reach = 5 * (share * (1 - share) * n) ** 0.5
    low, high = max(0, int(share * n - reach)), min(n - 1, int(share * n + reach) + 1)
    return max(ordered[high] - np.quantile(ordered, share), np.quantile(ordered, share) - ordered[low])


@pytest.mark.parametrize(("tokens", "top_k", "experts"), [(64, 2, 8), (128, 1, 4), (48, 5, 12), (60, 3, 4)])
def test_the_fair_router_is_as_uneven_as_picking_experts_out_of_a_hat(tokens, top_k, experts):
    violations, smallest = simulated(tokens, top_k, experts, 400)
    fair = fair_router(tokens, top_k, experts)
    error = statistics.stdev(violations) * (1 / 400 + 1 / 200) ** 0.5
    assert fair.max_vio == pytest.approx(statistics.mean(violations), abs=5 * error)
    assert fair.max_vio_p95 == pytest.approx(np.quantile(violations, 0.95), abs=2 * quantile_error(violations, 0.95))
    assert fair.min_load_p05 == pytest.approx(np.quantile(smallest, 0.05), abs=2 * quantile_error(smallest, 0.05))


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "mean", "deviation"),
    [
        (512, 2, 8, 0.120, 0.039),
        (1024, 2, 8, 0.086, 0.030),
        (2048, 2, 8, 0.058, 0.021),
        (1024, 2, 16, 0.155, 0.045),
        (2048, 4, 16, 0.071, 0.020),
        (1024, 4, 32, 0.175, 0.040),
        (2048, 6, 64, 0.165, 0.031),
    ],
)
def test_the_fair_router_shows_the_floors_of_the_reference_table(tokens, top_k, experts, mean, deviation):
    """shared/papers.md 6.0, rounded to three places; at most 200 draws, so four standard errors and the rounding."""
    fair = fair_router(tokens, top_k, experts)
    assert fair.max_vio == pytest.approx(mean, abs=4 * deviation / 200**0.5 + 0.002)
    assert mean + 0.8 * deviation < fair.max_vio_p95 < mean + 3 * deviation
    assert 0 < fair.min_load_p05 < 1


def test_the_fair_router_is_cached_and_always_the_same():
    first = fair_router(128, 2, 8)
    assert fair_router(128, 2, 8) is first
    fair_router.cache_clear()
    assert fair_router(128, 2, 8) == first


def test_a_single_choice_is_as_unfair_as_a_load_can_be():
    """One expert has all of it, sixteen times the mean, and the others nothing, also where that is the last of them."""
    fair_router.cache_clear()  # or a mutant would be shown what the right code has left there
    fair = fair_router(1, 1, 16)
    assert (fair.max_vio, fair.max_vio_p95, fair.min_load_p05) == (15.0, 15.0, 0.0)


def test_choosing_everybody_is_perfectly_fair():
    fair = fair_router(64, 8, 8)
    assert (fair.max_vio, fair.max_vio_p95, fair.min_load_p05) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("shape", [(1, 6), (2, 3, 5)])
def test_a_ledger_goes_on_from_the_loads_of_another(shape):
    """Most experts get nothing, so that every step more or less in a window shows."""
    draw = np.random.default_rng(3)
    loads = [draw.integers(1, 50, shape) * (draw.random(shape) < 0.03) for _ in range(3 * GLOBAL_WINDOW)]
    ledger = Ledger(*shape)
    for number, load in enumerate(loads):
        if number % 37 == 0:
            other = Ledger(*shape)
            other.begin_after(ledger.past())
        ours, theirs = (one.figures(load, load, 1) for one in (ledger, other))
        for name in ("max_vio_global_L", "dead_experts_L"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=f"{number} {name}")
        ledger.advance()
        other.advance()
