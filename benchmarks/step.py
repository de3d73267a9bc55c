"""Where does the time of a training step go, and what does the grouped product gain over a loop?

    python -m benchmarks.step

Process CPU time on one thread, medians, the candidates taking turns. The full table against other libraries is still
to come; this one guards the two choices the engine rests on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from moeviz import experts
from moeviz.config import Knobs, Recipe
from moeviz.engine import Engine

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


def expert_layer(mix: Callable[..., torch.Tensor], E: int, K: int, T: int = 1024, d: int = 32) -> Callable[[], None]:
    """Forward and backward of the expert part alone, balanced routing."""
    torch.manual_seed(0)
    x_Td = torch.randn(T, d, requires_grad=True)
    chosen_TK = torch.rand(T, E).topk(K).indices
    gates_TK = torch.rand(T, K, requires_grad=True)
    weights = [torch.randn(E, d, 2 * d, requires_grad=True), torch.randn(E, d, d, requires_grad=True)]
    load = () if mix is experts.mix_by_loop else (torch.bincount(chosen_TK.flatten(), minlength=E),)

    def work() -> None:
        mix(x_Td, chosen_TK, gates_TK, *load, *weights).sum().backward()

    work()
    return work


def table(title: str, times: dict[str, float], per: int = 1) -> None:
    """Print medians and their ratio to the first."""
    first = next(iter(times.values()))
    print(f"\n{title}")
    for name, value in times.items():
        print(f"  {name:34}{value / per:9.2f} ms   x {value / first:.2f}")


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, CPU time, medians of {ROUNDS} rounds taking turns")
    groups = {"num_groups": 4, "groups_kept": 2}
    variants = {
        "no balancing": steps_of(Recipe(), Knobs()),
        "loss-free bias": steps_of(Recipe(), Knobs(bias_rule="sign")),
        "auxiliary loss": steps_of(Recipe(), Knobs(aux_loss="batch")),
        "bias, sequence loss, groups": steps_of(Recipe(), Knobs(bias_rule="sign", aux_loss="sequence", **groups)),
        "dropping per expert": steps_of(Recipe(), Knobs(token_dropping="expert")),
        "64 experts, K = 4": steps_of(Recipe(num_experts=64), Knobs(top_k=4)),
    }
    table("One training step", interleaved(variants), STEPS_PER_ROUND)
    for E, K in ((8, 2), (16, 2), (64, 4)):
        candidates = {
            "grouped product, one node": expert_layer(experts.mix, E, K),
            "loop over experts": expert_layer(experts.mix_by_loop, E, K),
        }
        table(f"Expert part, forward and backward, E = {E}, K = {K}, T = 1024, d = 32", interleaved(candidates))


if __name__ == "__main__":
    main()
