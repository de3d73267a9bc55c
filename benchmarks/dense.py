"""What does choosing cost, beside one dense network that does the same active work?

The bound is a SwiGLU of hidden size K H applied to every token: the same products without a router. Above it are our
expert part alone, with choice and gates given, and our whole layer. The loop over experts is what the grouped product
replaces. Forward and backward, all gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cells import GRID, Cell, Weights, ours, weights_of
from benchmarks.measure import Table, Time, Work, backward, columns, interleaved, timed
from moeviz.experts import mix, mix_by_loop

MORE = [*(Cell(T, d, 8, 2, d) for T in (1024, 4096) for d in (64, 128)), Cell(4096, 64, 16, 2, 64)]
FOR_AN_ACCELERATOR = Cell(16384, 1024, 256, 8, 512)
ALONE = "expert part alone"


def tables(device: str) -> Iterator[Table]:
    """Ratios to the dense bound."""
    rows = [row for cell in [*GRID, *MORE] for row in timed(str(cell), _measured(cell, device), "dense", _goals(cell))]
    yield Table("Our layer and a dense network of the same active work", columns("dense", "goal"), rows)
    if device == "cuda":
        yield _large(device)


def _goals(cell: Cell) -> dict[str, float]:
    """What the expert part may cost at most."""
    if cell.E == 256:
        return {ALONE: 3.0}
    if cell.E > 16:
        return {}
    if cell.d == 32:
        return {ALONE: 2.2}
    return {ALONE: 1.6} if cell.T >= 1024 else {}


def _measured(cell: Cell, device: str) -> dict[str, Time]:
    weights = weights_of(cell, device)
    whole = backward(lambda: ours(weights, weights.x_Td, cell), weights.leaves, weights.grad_Td)
    candidates = {
        "dense": dense(weights, cell),
        ALONE: experts(mix, weights, cell),
        "whole layer": whole,
        "one expert after another": experts(mix_by_loop, weights, cell),
    }
    return interleaved(candidates, device)


def dense(weights: Weights, cell: Cell) -> Work:
    """A SwiGLU of hidden size K H."""
    wide = cell._replace(E=1, H=cell.K * cell.H)
    wide_weights = weights_of(wide, weights.x_Td.device.type, weights.x_Td.dtype)
    w_in, w_out = (w[0].detach().requires_grad_() for w in (wide_weights.w_in_Ed2H, wide_weights.w_out_EHd))

    def forward() -> Tensor:
        gate, up = (weights.x_Td @ w_in).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ w_out

    return backward(forward, [weights.x_Td, w_in, w_out], weights.grad_Td)


def experts(of: Callable[..., Tensor], weights: Weights, cell: Cell) -> Work:
    """`mix`, or what does the same, with choice and gates given. The gates have a gradient, which a router needs."""
    chosen_TK, gates_TK = choice(weights, cell)
    inputs = (weights.x_Td, gates_TK, weights.w_in_Ed2H, weights.w_out_EHd)

    def forward() -> Tensor:
        return of(*(part[None] for part in (weights.x_Td, chosen_TK, *inputs[1:])))[0]

    return backward(forward, list(inputs), weights.grad_Td)


def choice(weights: Weights, cell: Cell) -> tuple[Tensor, Tensor]:
    """The best of sigmoid affinities and their share, a leaf."""
    with torch.no_grad():
        scores_TE = (weights.x_Td @ weights.centroids_Ed.t()).sigmoid()
        best_TK, chosen_TK = scores_TE.topk(cell.K, dim=-1)
        gates_TK = best_TK / best_TK.sum(-1, keepdim=True)
    return chosen_TK, gates_TK.requires_grad_()


def _large(device: str) -> Table:
    """A layer of the size that is trained in earnest, in float32 and bfloat16."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        weights = weights_of(FOR_AN_ACCELERATOR, device, dtype)
        pair = {
            "dense": dense(weights, FOR_AN_ACCELERATOR),
            ALONE: experts(mix, weights, FOR_AN_ACCELERATOR),
        }
        name = f"{FOR_AN_ACCELERATOR} {str(dtype).removeprefix('torch.')}"
        rows += timed(name, interleaved(pair, device), "dense")
    return Table("The expert part at a size for an accelerator", columns("dense"), rows)
