"""Where does the time of a training step go, and what does the grouped product gain over a loop?

    python -m benchmarks.step

Process CPU time on one thread, medians, the candidates taking turns. The full table against other libraries is still
to come; this one guards the two choices the engine rests on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from moeviz import experts, metrics
from moeviz.config import TASK_DEFAULTS, Knobs, Recipe
from moeviz.engine import EVAL_EVERY, Engine

ROUNDS, STEPS_PER_ROUND = 7, 30


def milliseconds(work: Callable[[], None]) -> float:
    """CPU time of `work`, in ms."""
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3


def interleaved(candidates: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median CPU time of each candidate; they take turns, so that other work troubles them alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, work in candidates.items():
            times[name].append(milliseconds(work))
    return {name: statistics.median(values) for name, values in times.items()}


def steps_of(recipe: Recipe, knobs: Knobs) -> Callable[[], None]:
    """A round of training steps of one engine."""
    engine = Engine(recipe, knobs)

    def work() -> None:
        for _ in range(STEPS_PER_ROUND):
            engine.step(knobs)

    work()
    return work


def probing(recipe: Recipe, knobs: Knobs, steps: int = 1200) -> dict[str, float]:
    """What a step costs with the probe of interference at its default and without, and what snapshots' measures do.

    One engine, its steps with and without a probe taking turns; mean of the middle half of the steps of each kind.
    """
    engine, times = Engine(recipe, knobs), {0: [], 1: []}
    for number in range(steps):
        kind = number % 2
        every = replace(knobs, probe_every=kind)
        times[kind].append(milliseconds(lambda every=every: engine.step(every)))
    without, probed = (middle_mean(times[kind][20:]) for kind in (0, 1))
    return {"never": without, f"every {Knobs().probe_every} steps": without + (probed - without) / Knobs().probe_every}


def middle_mean(values: list[float]) -> float:
    """Mean of the middle half, so that single interruptions do not count."""
    quarter = len(values) // 4
    return statistics.fmean(sorted(values)[quarter:-quarter])


def measuring(recipe: Recipe, knobs: Knobs) -> dict[str, float]:
    """A step, and its figures alone: specialisation, straggler and global MaxVio, as often as a run works them out."""
    engine = Engine(recipe, knobs)
    whole = middle_mean([milliseconds(lambda: engine.step(knobs)) for _ in range(300)])
    load_LE = np.ones((recipe.num_layers, recipe.num_experts), dtype=np.int64)
    joint_LEC = np.ones((recipe.num_layers, recipe.num_experts, engine.task.num_domains))

    def every_step() -> None:
        for _ in range(100):
            metrics.straggler(load_LE, 4)
            metrics.max_vio(load_LE + load_LE)

    def with_an_evaluation() -> None:
        for _ in range(100):
            metrics.joint_counts(chosen_TK, domain_T, recipe.num_experts, engine.task.num_domains)
            metrics.specialisation(joint_LEC)

    domain_T = engine.task.held_out.domain_T.numpy()
    chosen_TK = np.zeros((recipe.tokens_per_step, knobs.top_k), dtype=np.int64)
    often, seldom = (
        middle_mean([milliseconds(work) for _ in range(8)]) / 100 for work in (every_step, with_an_evaluation)
    )
    return {"the step": whole, "straggler and global MaxVio": often, "specialisation, per step": seldom / EVAL_EVERY}


def expert_layer(mix: Callable[..., torch.Tensor], E: int, K: int, T: int = 1024, d: int = 32) -> Callable[[], None]:
    """Forward and backward of the expert part alone, balanced routing."""
    torch.manual_seed(0)
    x_Td = torch.randn(T, d, requires_grad=True)
    chosen_TK = torch.rand(T, E).topk(K).indices
    gates_TK = torch.rand(T, K, requires_grad=True)
    weights = [torch.randn(E, d, 2 * d, requires_grad=True), torch.randn(E, d, d, requires_grad=True)]

    def work() -> None:
        mix(x_Td, chosen_TK, gates_TK, *weights).sum().backward()

    work()
    return work


def table(title: str, times: dict[str, float], per: int = 1) -> None:
    """Print medians and their ratio to the first."""
    first = next(iter(times.values()))
    print(f"\n{title}")
    for name, value in times.items():
        print(f"  {name:34}{value / per:9.3f} ms   x {value / first:.3f}")


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, CPU time, medians of {ROUNDS} rounds taking turns")
    groups = {"num_groups": 4, "groups_kept": 2}
    variants = {
        "no balancing": steps_of(Recipe(), Knobs()),
        "loss-free bias": steps_of(Recipe(), Knobs(bias_rule="sign")),
        "auxiliary loss": steps_of(Recipe(), Knobs(alpha=0.1)),
        "bias, sequence loss, groups": steps_of(Recipe(), Knobs(bias_rule="sign", alpha_sequence=1e-4, **groups)),
        "dropping per expert": steps_of(Recipe(), Knobs(token_dropping="expert")),
        "64 experts, K = 4": steps_of(Recipe(num_experts=64), Knobs(top_k=4)),
    }
    table("One training step", interleaved(variants), STEPS_PER_ROUND)
    adding = Knobs(alpha=0.1)
    text = Recipe(task="text", **TASK_DEFAULTS["text"])
    for title, recipe in {"skills": Recipe(), "skills, 2 layers": Recipe(num_layers=2), "text": text}.items():
        table(f"A step with the probe of interference, {title}", probing(recipe, adding))
        table(f"Figures of a step, {title}", measuring(recipe, adding))
    for E, K in ((8, 2), (16, 2), (64, 4)):
        candidates = {
            "grouped product, one node": expert_layer(experts.mix, E, K),
            "loop over experts": expert_layer(experts.mix_by_loop, E, K),
        }
        table(f"Expert part, forward and backward, E = {E}, K = {K}, T = 1024, d = 32", interleaved(candidates))


if __name__ == "__main__":
    main()
