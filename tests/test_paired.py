"""Differences over equal seeds: are the intervals what they claim, and are the words no more than that?"""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from moeviz.paired import Difference, compare, sentence, t_quantile

# Fisher and Yates, table III: two-sided 5 % and 1 % points.
TABLE_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 7: 2.365, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980}
TABLE_99 = {1: 63.657, 2: 9.925, 5: 4.032, 8: 3.355, 30: 2.750}


@pytest.mark.parametrize(("coverage", "table"), [(0.95, TABLE_95), (0.99, TABLE_99)])
def test_t_quantiles_are_those_of_the_printed_tables(coverage, table):
    assert {degrees: round(t_quantile(degrees, coverage), 3) for degrees in table} == table


def test_many_seeds_approach_the_normal_quantile():
    assert t_quantile(10_000) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=3e-4)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_interval_covers_the_truth_in_95_of_100_sweeps(seeds):
    """4,000 sweeps of normal differences around 0.3; three standard errors of the share are 0.010."""
    rng, sweeps = np.random.default_rng(seeds), 4_000
    covered = 0
    for drawn in rng.normal(0.3, 2.0, (sweeps, seeds)):
        found = compare(dict(enumerate(drawn)), dict.fromkeys(range(seeds), 0.0))
        covered += found.low <= 0.3 <= found.high
    assert covered / sweeps == pytest.approx(0.95, abs=0.0104)


def test_what_a_seed_does_to_both_cancels():
    common = {seed: 100.0 * seed for seed in range(4)}
    mine = {seed: value + 0.01 + 0.001 * (-1) ** seed for seed, value in common.items()}
    found = compare(mine, common)
    assert found.mean == pytest.approx(0.01)
    assert found.low == pytest.approx(0.01 - 3.182 * statistics.stdev([0.001, -0.001] * 2) / 2, rel=1e-3)
    assert found.apart
    assert not compare(mine, {seed: common[3 - seed] for seed in common}).apart


def test_the_difference_is_mine_minus_theirs():
    assert compare({0: 1.0, 1: 2.0}, {0: 3.0, 1: 4.5}).mean == -2.25


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_a_seed_without_both_figures_is_left_out_and_named(missing):
    found = compare({0: 1.0, 1: missing, 2: 3.0}, {0: 0.5, 1: 1.0, 2: 2.5, 7: 1.0})
    assert (found.seeds, found.left_out) == ((0, 2), (1, 7))
    assert found.mean == 0.5
    assert "; without seeds 1, 7, of which one or both diverged or are missing" in sentence("eval_loss", found, "u=1")


def test_one_seed_gives_no_interval_and_none_no_difference():
    one, none = compare({3: 1.0}, {3: 0.75}), compare({3: None}, {})
    assert (one.mean, one.low, one.high, one.apart) == (0.25, None, None, False)
    assert (none.mean, none.low, none.seeds, none.apart) == (None, None, (), False)


SEEDS = (0, 1, 2)


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (
            Difference(-0.012, -0.020, -0.004, SEEDS),
            "eval_loss: 0.0120 lower than u=0.003 (95 % interval 0.0040 to 0.0200 lower, 3 seeds).",
        ),
        (
            Difference(1.5, 0.5, 2.5, SEEDS),
            "eval_loss: 1.5 higher than u=0.003 (95 % interval 0.5 to 2.5 higher, 3 seeds).",
        ),
        (
            Difference(-0.002, -0.013, 0.009, SEEDS),
            "eval_loss: cannot be told apart from u=0.003 (0.002 lower on average, "
            "95 % interval 0.013 lower to 0.009 higher, 3 seeds).",
        ),
        (
            Difference(0.0004, -0.0096, 0.0104, SEEDS),
            "eval_loss: cannot be told apart from u=0.003 (about equal on average, "
            "95 % interval 0.010 lower to 0.010 higher, 3 seeds).",
        ),
        (Difference(0.0, 0.0, 0.0, SEEDS), "eval_loss: equal to u=0.003 in each of 3 seeds."),
        (Difference(-12.0, -12.0, -12.0, SEEDS), "eval_loss: 12 lower than u=0.003 in each of 3 seeds."),
        (
            Difference(0.0313, None, None, (4,)),
            "eval_loss: 0.031 higher than u=0.003 (1 seed, which gives no interval).",
        ),
        (Difference(None, None, None, ()), "eval_loss: not compared with u=0.003, since no seed has both."),
    ],
)
def test_the_words_say_what_was_measured_and_how_surely(difference, words):
    assert sentence("eval_loss", difference, "u=0.003") == words
