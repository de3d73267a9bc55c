"""How hard do the added balance losses pull, beside the task? Read off a step that trains on, to the bit, as without.

The gradient of the added losses alone is taken on the step's own graph before the step's own backward pass; what the
task asks for is the step's whole gradient less that. So a probe costs a part of a backward pass and no forward pass.
Predictions of further tokens (MTP) count as task: they are not there for balance.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moeviz import metrics
from moeviz.model import ToyMoE
from moeviz.snapshot import Interference


class Probe:
    """One probe of one step: made before the backward pass, asked after it.

    Args:
        model: its parameters take part in the graph of `added_loss`.
        added_loss: the balance losses as added to the task loss, alpha included, summed over runs; a
            constant if there are none. What one run adds has no gradient at another's weights.
    """

    def __init__(self, model: ToyMoE, added_loss: Tensor) -> None:
        self._groups = (model.router(), model.trunk())
        self._added: dict[Tensor, Tensor] = {}
        if added_loss.requires_grad:
            wanted = [parameter for group in self._groups for parameter in group]
            found = torch.autograd.grad(added_loss, wanted, retain_graph=True, allow_unused=True)
            self._added = {parameter: part for parameter, part in zip(wanted, found, strict=True) if part is not None}

    def compare(self, run: int) -> Interference:
        """One run's norm ratio and cosine on router and trunk, once `.grad` holds the whole gradient of the step."""
        figures = []
        for group in self._groups:
            whole_P = _flat(group, [parameter.grad for parameter in group], run)
            added_P = _flat(group, [self._added.get(parameter) for parameter in group], run)
            figures += metrics.interference(added_P, whole_P - added_P)
        return Interference(*figures)


def _flat(group: list[Tensor], gradients: list[Tensor | None], run: int) -> np.ndarray:
    """All gradients of a run in one row; a parameter that has none counts as 0."""
    pairs = zip(group, gradients, strict=True)
    rows = [(torch.zeros_like(parameter) if part is None else part)[run].flatten() for parameter, part in pairs]
    return torch.cat(rows).detach().cpu().numpy() if rows else np.zeros(0, np.float32)
