"""Do the measures say what their names say, and is a fair router as uneven as an independent simulation of one?"""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeviz.metrics import dead_experts, fair_router, fan_out, max_vio

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


def test_choosing_everybody_is_perfectly_fair():
    fair = fair_router(64, 8, 8)
    assert (fair.max_vio, fair.max_vio_p95, fair.min_load_p05) == (0.0, 0.0, 1.0)
