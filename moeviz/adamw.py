"""How does one run descend? AdamW (arXiv 1711.05101), by the library's own fused kernel.

`torch.optim.AdamW` does the same; on its first step it imports half of torch's compiler, which takes as long as torch
itself, in every process that trains. It also holds all runs in one list, where each should have its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.adamw import adamw

BETA1, BETA2, WEIGHT_DECAY, EPSILON = 0.9, 0.99, 0.01, 1e-8


class AdamW:
    """The moments of one run's weights.

    Args:
        weights: what `step` changes, by their gradients.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.weights = list(weights)
        self.moments = [
            {
                "step": torch.zeros((), device=weight.device),
                "exp_avg": torch.zeros_like(weight.detach()),
                "exp_avg_sq": torch.zeros_like(weight.detach()),
            }
            for weight in weights
        ]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Change the weights that have a gradient."""
        own = [(weight, of) for weight, of in zip(self.weights, self.moments, strict=True) if weight.grad is not None]
        adamw(
            [weight for weight, _ in own],
            [weight.grad for weight, _ in own],
            [of["exp_avg"] for _, of in own],
            [of["exp_avg_sq"] for _, of in own],
            [],
            [of["step"] for _, of in own],
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=learning_rate,
            weight_decay=WEIGHT_DECAY,
            eps=EPSILON,
            maximize=False,
        )
