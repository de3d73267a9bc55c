"""What is one layer of this size made of, and how does the project compute it?

`ours` is the only place of these benchmarks that calls the project's own layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moeviz.config import Knobs, Recipe
from moeviz.model import MoELayer
from moeviz.together import Group


class Cell(NamedTuple):
    """Tokens, model width, experts, experts per token, hidden size of an expert."""

    T: int
    d: int
    E: int
    K: int
    H: int

    def __str__(self) -> str:
        return f"T{self.T} d{self.d} E{self.E} K{self.K} H{self.H}"


GRID = [
    *(Cell(512, 32, 8, 2, 32), Cell(1024, 32, 16, 2, 32), Cell(1024, 64, 16, 2, 64)),
    *(Cell(1024, 64, 64, 4, 32), Cell(4096, 128, 16, 2, 128), Cell(1024, 32, 256, 8, 32)),
]


@dataclass(frozen=True)
class Weights:
    """A layer's weights, its input and the gradient of its output. Random: tokens choose about evenly."""

    x_Td: Tensor
    grad_Td: Tensor
    centroids_Ed: Tensor
    w_in_Ed2H: Tensor
    w_out_EHd: Tensor
    bias_E: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        """What a layer's backward pass has to find gradients of."""
        return [self.x_Td, self.centroids_Ed, self.w_in_Ed2H, self.w_out_EHd]

    @cached_property
    def layer(self) -> MoELayer:
        """The project's own layer with these weights."""
        E, d, width = self.w_in_Ed2H.shape
        with torch.device("meta"):
            layer = MoELayer(Recipe(num_experts=E, d_model=d, d_expert=width // 2))
        for name in ("centroids_Ed", "w_in_Ed2H", "w_out_EHd"):
            delattr(layer, name)  # a leaf seen as a stack of one is no parameter
            with torch.enable_grad():  # whoever asks first may only want to see what comes out
                setattr(layer, name, getattr(self, name)[None])
        return layer


def weights_of(cell: Cell, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Weights:
    """Random weights of a cell, the same on every device."""
    T, d, E, _, H = cell
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, fan_in: int = 1) -> Tensor:
        return (torch.randn(*shape, generator=draw) * fan_in**-0.5).to(device, dtype)

    x_Td, centroids_Ed = normal(T, d), normal(E, d, fan_in=d)
    w_in_Ed2H, w_out_EHd = normal(E, d, 2 * H, fan_in=d), normal(E, H, d, fan_in=H)
    leaves = [nn.Parameter(leaf) for leaf in (x_Td, centroids_Ed, w_in_Ed2H, w_out_EHd)]
    return Weights(leaves[0], normal(T, d), *leaves[1:], torch.zeros(E, device=device))


def ours(weights: Weights, x_Td: Tensor, cell: Cell, gating: str = "sigmoid", bias_E: Tensor | None = None) -> Tensor:
    """One layer: router, top-k and experts; no norm, no residual, no shared expert."""
    bias_E = weights.bias_E if bias_E is None else bias_E
    group = Group([0], Knobs(top_k=cell.K, gating=gating))
    out_RTd, _ = weights.layer.mixture(x_Td[None], bias_E[None], [group])
    return out_RTd[0]
