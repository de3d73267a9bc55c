"""Parts of the model as one run sees them: what carries the axis of runs, given and taken without it."""

from __future__ import annotations

import torch
from torch import Tensor

from moeviz import experts
from moeviz.config import Knobs
from moeviz.model import MoELayer, ToyMoE
from moeviz.routing import Routing
from moeviz.together import Group


def mix(*columns: Tensor | None) -> Tensor:
    """`experts.mix` of one run."""
    return experts.mix(*(_stacked(column) for column in columns))[0]


def mix_by_loop(*columns: Tensor) -> Tensor:
    """`experts.mix_by_loop` of one run."""
    return experts.mix_by_loop(*(_stacked(column) for column in columns))[0]


def layer_of(
    layer: MoELayer, x_Td: Tensor, bias_E: Tensor, knobs: Knobs, protected_T: Tensor | None = None
) -> tuple[Tensor, Routing, Tensor]:
    """Output, routing and the load that survives dropping; `protected_T=None`: nothing is dropped."""
    out_RTd, [decision] = layer(x_Td[None], bias_E[None], [Group([0], knobs)], _stacked(protected_T))
    return out_RTd[0], decision.routing.twin(0), decision.kept_load_RE[0]


def model_of(
    model: ToyMoE,
    inputs: Tensor,
    bias_LE: Tensor,
    knobs: Knobs,
    protected_T: Tensor | None = None,
    token_id_T: Tensor | None = None,
) -> tuple[Tensor, list[Routing], Tensor]:
    """Predictions (T, output_size), one routing per layer, and the kept loads (L, E)."""
    groups = [Group([0], knobs)]
    hidden_RTd, [decisions] = model.hidden(inputs, bias_LE[None], groups, _stacked(protected_T), token_id_T)
    kept_load_LE = torch.stack([decision.kept_load_RE[0] for decision in decisions])
    return model.predict(hidden_RTd)[0], [decision.routing.twin(0) for decision in decisions], kept_load_LE


def _stacked(column: Tensor | None) -> Tensor | None:
    return None if column is None else column[None]
