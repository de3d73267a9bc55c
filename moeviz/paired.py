"""How far apart are two settings over equal seeds, and what may be said about it?

Runs of one seed begin with the same weights and see the same batches, so the difference between two settings is taken
seed by seed, and what a seed does to both cancels. The mean difference comes with a t-interval over seeds (W. S. Gosset
1908; it takes the differences as normal, which a handful of seeds cannot show). An interval covers the true difference
in 95 of 100 sweeps: of twenty comparisons one is expected to miss it by chance. Plain Python, no torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

COVERAGE = 0.95
INTERVAL = f"{100 * COVERAGE:.0f} % interval"
FIGURES = ("eval_loss", "max_vio_batch", "specialisation", "dropped_fraction", "dead_experts")


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure under one setting minus the same under another, over the seeds that have both."""

    mean: float | None  # None without any seed
    low: float | None  # ends of the interval; None with fewer than two seeds
    high: float | None
    seeds: tuple[int, ...]
    left_out: tuple[int, ...] = ()  # seeds of which one setting or both have no figure

    @property
    def apart(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and not self.low <= 0 <= self.high


def compare(mine: Mapping[int, float | None], theirs: Mapping[int, float | None]) -> Difference:
    """Mine minus theirs, paired by seed. A seed without a finite number on both sides is left out, and named."""
    every = sorted({*mine, *theirs})
    seeds = tuple(seed for seed in every if _is_number(mine.get(seed)) and _is_number(theirs.get(seed)))
    left_out = tuple(seed for seed in every if seed not in seeds)
    differences = [mine[seed] - theirs[seed] for seed in seeds]
    if len(differences) < 2:
        return Difference(differences[0] if differences else None, None, None, seeds, left_out)
    mean = statistics.fmean(differences)
    half = t_quantile(len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return Difference(mean, mean - half, mean + half, seeds, left_out)


@lru_cache(maxsize=256)
def t_quantile(degrees: int, coverage: float = COVERAGE) -> float:
    """The t within which, on either side of 0, Student's distribution has this share: 12.706 at 1 degree of freedom.

    The share within is known in closed form (Abramowitz and Stegun, 26.7.3 and 26.7.4) and is halved down to t.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _share_within(middle, degrees) < coverage else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _share_within(angle: float, degrees: int) -> float:
    """P(|T| <= t), where tan(angle) = t / sqrt(degrees)."""
    odd = degrees % 2
    term, total = 1.0, 0.0
    for k in range(degrees // 2):
        total += term
        term *= math.cos(angle) ** 2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
    return math.sin(angle) * total


def sentence(figure: str, difference: Difference, base: str) -> str:
    """What was measured, never who "wins": how far from `base`, a setting such as u=0.003, and how surely."""
    seeds = f"{len(difference.seeds)} seed{'s' * (len(difference.seeds) != 1)}{_without(difference.left_out)}"
    if difference.mean is None:
        return f"{figure}: not compared with {base}, since no seed has both{_without(difference.left_out)}."
    if difference.low is None:
        return f"{figure}: {_by(difference.mean, base)} ({seeds}, which gives no interval)."
    if difference.low == difference.high:
        return f"{figure}: {_by(difference.mean, base)} in each of {seeds}."
    decimals = _decimals((difference.high - difference.low) / 2)
    shown = _direction(difference.mean, decimals)
    if difference.apart:
        near, far = sorted((abs(difference.low), abs(difference.high)))
        interval = f"{INTERVAL} {near:.{decimals}f} to {far:.{decimals}f} {shown.split()[-1]}"
        return f"{figure}: {shown} than {base} ({interval}, {seeds})."
    interval = f"{INTERVAL} {_direction(difference.low, decimals)} to {_direction(difference.high, decimals)}"
    mean = f"{shown} on average" if round(difference.mean, decimals) else "about equal on average"
    return f"{figure}: cannot be told apart from {base} ({mean}, {interval}, {seeds})."


def _by(mean: float, base: str) -> str:
    if mean == 0:
        return f"equal to {base}"
    return f"{_direction(mean, 0 if mean == int(mean) else _decimals(mean))} than {base}"


def _direction(value: float, decimals: int) -> str:
    return f"{abs(value):.{decimals}f} {'lower' if value < 0 else 'higher'}"


def _decimals(value: float) -> int:
    """Decimals that show two digits of a value, which is not 0."""
    return min(max(1 - math.floor(math.log10(abs(value))), 0), 9)


def _without(seeds: tuple[int, ...]) -> str:
    """Leaving diverged runs out flatters whichever setting diverges, so it is never done in silence."""
    if not seeds:
        return ""
    named = ", ".join(map(str, seeds))
    return f"; without seed{'s' * (len(seeds) > 1)} {named}, of which one or both diverged or are missing"


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
