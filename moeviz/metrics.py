"""How unbalanced is a router, how unbalanced would a fair one look, and what do its experts know and its losses do?

Plain functions of loads, choices and gradients, NumPy in, NumPy out, and a `Ledger` that makes a run's figures step by
step. Shapes: T tokens, E experts, K experts per token, D devices, C domains (skills or kinds of text), L layers, N
steps, G groups, P parameters.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import add, sub

import numpy as np

from moeviz.snapshot import Fair

DEAD_WINDOW = 20  # steps over which an expert must have had at least DEAD_SHARE of the mean load to count as alive
DEAD_SHARE = 0.01
GLOBAL_WINDOW = 100  # steps whose load is summed for the global MaxVio of a snapshot
_Rows = list[list[int]]  # the loads of layers, or sums of them


def max_vio(load_E: np.ndarray) -> np.ndarray:
    """(max load - mean load) / mean load over the last axis (arXiv 2408.15664, eq. 4); 0 without any load."""
    mean = load_E.mean(-1)
    return np.divide(load_E.max(-1) - mean, mean, out=np.zeros_like(mean), where=mean > 0)


def max_vio_global(load_NLE: np.ndarray) -> np.ndarray:
    """MaxVio of the load summed over N batches, per layer (arXiv 2408.15664, section 4.1: MaxVio_global).

    What one batch lacks another may have, so for batches of one size it is never above the mean of their own MaxVio.
    """
    return max_vio(load_NLE.sum(0))


def mean_and_worst(value_L: np.ndarray) -> tuple[float, float]:
    """A measure's mean over layers, as the papers print it, and its largest; NaN where no layer has a value."""
    known = value_L[np.isfinite(value_L)]
    return (float(known.mean()), float(known.max())) if known.size else (math.nan, math.nan)


def straggler(load_E: np.ndarray, num_devices: int) -> np.ndarray:
    """Max over devices of load / mean, over the last axis: how much longer than at balance the slowest device computes.

    Device d holds the d-th contiguous block of E/D experts; the load is the one before drops. It is 1 + MaxVio at
    device level, at most 1 + MaxVio of the experts, 1 without any load, and NaN where D does not divide E, since no
    such placement exists. "On paper": time in proportion to tokens, one layer, no communication and no tiles
    (arXiv 2405.04434, section 2.2.3, names the aim; the factor is derived).
    """
    *others, experts = load_E.shape
    if experts % num_devices:
        return np.full(others, math.nan)
    return 1 + max_vio(load_E.reshape(*others, num_devices, experts // num_devices).sum(-1))


def joint_counts(
    chosen_TK: np.ndarray,
    domain_T: np.ndarray,
    num_experts: int,
    num_domains: int,
    valid_TK: np.ndarray | None = None,
) -> np.ndarray:
    """How many (token, expert) pairs join each expert with each domain, shape (E, C). Its row sums are the load.

    Pairs that `valid_TK` marks as padding are left out.
    """
    cell_TK = chosen_TK * num_domains + domain_T[:, None]
    cell_P = cell_TK.ravel() if valid_TK is None else cell_TK[valid_TK]
    return np.bincount(cell_P, minlength=num_experts * num_domains).reshape(num_experts, num_domains)


def mutual_information(joint_EC: np.ndarray) -> np.ndarray:
    """What the expert of a (token, expert) pair tells about the token's domain, in nats, over the last two axes.

    I = sum p(e,c) ln(p(e,c) / (p(e) p(c))): 0 if experts serve all domains alike, at most the smaller of the two
    entropies. Counts of finitely many pairs n lie above the truth by about (E-1)(C-1)/(2n) (Miller 1955); it is not
    taken off. The measure is ours: no paper prints one (arXiv 2412.19437, figure 9, shows `relative_load`).
    """
    joint = joint_EC / np.maximum(joint_EC.sum((-2, -1), keepdims=True), 1)
    apart = joint.sum(-1, keepdims=True) * joint.sum(-2, keepdims=True)
    ratio = np.divide(joint, apart, out=np.ones_like(joint), where=joint > 0)
    return np.maximum((joint * np.log(ratio)).sum((-2, -1)), 0.0)


def specialisation(joint_EC: np.ndarray) -> np.ndarray:
    """The share of all there is to know about a token's domain that its experts tell: I / H(domain), 0 to 1.

    Divided by the entropy of the domains and not by the smaller of the two, so that a router collapsed onto few
    experts, which tells little, shows little. NaN with one domain: there is nothing to tell apart.
    """
    share_C = joint_EC.sum(-2) / np.maximum(joint_EC.sum((-2, -1)), 1)[..., None]
    entropy = -(share_C * np.log(np.where(share_C > 0, share_C, 1.0))).sum(-1)
    known = np.full_like(entropy, math.nan)
    return np.minimum(np.divide(mutual_information(joint_EC), entropy, out=known, where=entropy > 1e-12), 1.0)


def relative_load(joint_EC: np.ndarray) -> np.ndarray:
    """Load of expert e from domain c / its balanced load from that domain (arXiv 2412.19437, figure 9), shape (E, C).

    1 is balanced, each domain's mean over experts is 1; NaN for a domain of which there was no token.
    """
    mean_C = joint_EC.mean(0)
    return np.divide(joint_EC, mean_C, out=np.full(joint_EC.shape, math.nan), where=mean_C > 0)


def interference(added_P: np.ndarray, task_P: np.ndarray) -> tuple[float, float]:
    """Norm ratio |g_added| / |g_task| and cosine of the gradients of the added losses and of the task.

    The diagnostic is ours; arXiv 2408.15664, section 2.2, names the effect and measures nothing, so no sign of the
    cosine is promised. From batch to batch the cosine is mostly noise. Ratio 0 if nothing is added, infinity if only
    the task's gradient is 0, NaN without parameters or without any gradient; the cosine is NaN where a gradient is 0.
    """
    (added_P, added, added_unit), (task_P, task, task_unit) = _measured(added_P), _measured(task_P)
    if added == 0 or task == 0:
        return 0.0 if task > 0 else math.inf if added > 0 else math.nan, math.nan
    cosine = float(added_P @ task_P) / (added * task)
    return (added / task) * (added_unit / task_unit), min(1.0, max(-1.0, cosine))


def _measured(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The values in a unit in which their squares are numbers, their norm in it, and the unit."""
    with np.errstate(over="ignore"):
        norm = float(np.linalg.norm(values))
    if 1e-15 < norm < 1e15:
        return values, norm, 1.0
    unit = float(np.abs(values).max(initial=0.0)) or 1.0
    return values / unit, float(np.linalg.norm(values / unit)), unit


def dead_experts(load_E: np.ndarray) -> np.ndarray:
    """How many experts have under 1 % of the mean load, over the last axis."""
    return (load_E < DEAD_SHARE * load_E.mean(-1, keepdims=True)).sum(-1)


def fan_out(chosen_TK: np.ndarray, num_experts: int, num_groups: int) -> float:
    """Mean number of groups (nodes) that a token touches."""
    if num_groups == 1 or chosen_TK.size == 0:
        return 1.0
    tokens = len(chosen_TK)
    group_TK = chosen_TK // (num_experts // num_groups)
    touched = np.zeros(tokens * num_groups, dtype=bool)  # flat, since one index is found faster than two
    touched[group_TK + np.arange(0, tokens * num_groups, num_groups)[:, None]] = True
    return int(np.count_nonzero(touched)) / tokens


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """How unbalanced one step is, layer by layer; with the axes of twins first where the loads have some."""

    max_vio_L: np.ndarray  # `max_vio` of the step
    max_vio_global_L: np.ndarray  # `max_vio` of the load summed over the last GLOBAL_WINDOW steps, this one included
    straggler_L: np.ndarray  # `straggler` of the step
    dead_experts_L: np.ndarray  # `dead_experts` of the load summed over the last DEAD_WINDOW steps, this one included
    dropped_fraction_L: np.ndarray  # (token, expert) pairs that are not kept / all of them; 0 without any load


class Ledger:
    """The figures of the step being made, from its loads and those of the steps before it.

    They are to the bit what `max_vio`, `straggler` and `dead_experts` say of the same loads, in a third of their time.
    Plain Python: between two steps the caches are full of other things, and then each NumPy call takes microseconds
    for however few numbers. The cost grows with the loads, like that of a step, and with no window.

    Args:
        shape: of the loads: (L, E), or with axes for twins before these. Each twin has windows of its own.
    """

    def __init__(self, *shape: int) -> None:
        *self._axes, self._experts = shape
        none = [[0] * self._experts for _ in range(math.prod(self._axes))]
        self._past = deque([none] * (GLOBAL_WINDOW - 1))  # loads of the steps before this one, the oldest first
        self._long, self._short = none, none  # sums over both windows, without the step being made
        self._now: tuple[_Rows, _Rows, _Rows] | None = None  # loads of the step being made, and both sums with them

    def figures(self, load_LE: np.ndarray, kept_load_LE: np.ndarray, num_devices: int) -> Figures:
        """The figures of a step of these loads, before and after drops, on D devices. The windows stay as they are."""
        loads, kept_loads = self._rows(load_LE), self._rows(kept_load_LE)
        self._now = now = loads, _each(add, self._long, loads), _each(add, self._short, loads)
        layers = [_figures(*layer, num_devices) for layer in zip(kept_loads, *now, strict=True)]
        violation, globally, straggler, dead, dropped = np.array(layers).T.reshape(-1, *self._axes)
        return Figures(violation, globally, straggler, dead.astype(np.int64), dropped)

    def advance(self) -> None:
        """The step whose figures were asked last is past and belongs to the windows of those to come.

        Raises:
            TypeError: no figures were asked since the last time.
        """
        (loads, long, short), self._now = self._now, None
        self._past.append(loads)
        self._long = _each(sub, long, self._past.popleft())
        self._short = _each(sub, short, self._past[-DEAD_WINDOW])

    def past(self) -> np.ndarray:
        """The loads that the windows hold, the oldest first: all that a ledger is made of."""
        return np.array(self._past).reshape(-1, *self._axes, self._experts)

    def begin_after(self, load_NLE: np.ndarray) -> None:
        """Go on as after steps of these loads (`past`)."""
        self._past = deque(self._rows(load_LE) for load_LE in load_NLE)
        self._long = load_NLE.sum(0).reshape(-1, self._experts).tolist()
        self._short = load_NLE[len(load_NLE) + 1 - DEAD_WINDOW :].sum(0).reshape(-1, self._experts).tolist()
        self._now = None

    def _rows(self, load_LE: np.ndarray) -> _Rows:
        return (load_LE if load_LE.ndim == 2 else load_LE.reshape(-1, self._experts)).tolist()


def taken(chosen_TK: np.ndarray, num_experts: int, valid_TK: np.ndarray | None = None) -> np.ndarray:
    """Whether each token went to each expert, (T, E), before drops."""
    taken_TE = np.zeros((len(chosen_TK), num_experts), bool)
    if valid_TK is None:
        np.put_along_axis(taken_TE, chosen_TK, True, axis=1)
    else:
        tokens, places = np.nonzero(valid_TK)
        taken_TE[tokens, chosen_TK[tokens, places]] = True
    return taken_TE


def routed_differently(taken_LTE: np.ndarray, other_LTE: np.ndarray) -> tuple[float, int]:
    """Of two runs on one batch the share of tokens whose set of experts differs in any layer, and the first of them.

    Order among a token's experts does not count. The first is -1 where none differs. Ours.
    """
    differs_T = (taken_LTE != other_LTE).any((0, 2))
    return float(differs_T.mean()) if differs_T.size else 0.0, int(differs_T.argmax()) if differs_T.any() else -1


def _each(operation: Callable[[int, int], int], left: _Rows, right: _Rows) -> _Rows:
    """Expert by expert."""
    return [[*map(operation, *rows)] for rows in zip(left, right, strict=True)]


def _figures(
    kept: list[int], load: list[int], long: list[int], short: list[int], num_devices: int
) -> tuple[float, float, float, int, float]:
    """One layer's `Figures`, in their order, from its loads: kept, of the step, and summed over either window."""
    experts, pairs = len(load), sum(load)
    alive = DEAD_SHARE * (sum(short) / experts)
    size = max(experts // num_devices, 1)
    work = max([sum(load[first : first + size]) for first in range(0, experts, size)])
    return (
        _excess(max(load), pairs, experts),
        _excess(max(long), sum(long), experts),
        1 + _excess(work, pairs, num_devices) if not experts % num_devices else math.nan,
        len([1 for count in short if count < alive]),
        1 - sum(kept) / pairs if pairs else 0.0,
    )


def _excess(largest: float, total: int, parts: int) -> float:
    """`max_vio` of so many parts, of which only the largest and the total are known."""
    mean = total / parts
    return (largest - mean) / mean if total else 0.0


@lru_cache(maxsize=64)
def fair_router(tokens: int, top_k: int, num_experts: int) -> Fair:
    """MaxVio of a router that sends each token to K distinct experts at random: the floor that no rule can beat.

    Monte Carlo with a fixed seed; independent tokens, so real text, whose tokens are correlated, lies a little higher.
    """
    rng = np.random.default_rng(0)
    draws = int(np.clip(3e8 / (tokens * top_k**2), 20, 200))  # under a second at any size
    loads_DE = np.stack([_fair_load(rng, tokens, top_k, num_experts) for _ in range(draws)])
    violations = max_vio(loads_DE)
    smallest = loads_DE.min(-1) / loads_DE.mean(-1)
    return Fair(float(violations.mean()), float(np.quantile(violations, 0.95)), float(np.quantile(smallest, 0.05)))


def _fair_load(rng: np.random.Generator, tokens: int, top_k: int, num_experts: int) -> np.ndarray:
    """Loads of one draw. Floyd's sampling: K distinct experts per token at a cost of K draws, not E."""
    chosen_TK = np.empty((tokens, top_k), dtype=np.int64)
    for slot, last in enumerate(range(num_experts - top_k, num_experts)):
        pick_T = rng.integers(0, last + 1, tokens)
        taken_T = (chosen_TK[:, :slot] == pick_T[:, None]).any(-1)
        chosen_TK[:, slot] = np.where(taken_T, last, pick_T)
    return np.bincount(chosen_TK.ravel(), minlength=num_experts)
