"""Which other people's layers do the same, and do they?

Each is given our weights and must give our outputs before it is timed. transformers' blocks are theirs as they are,
less the shared experts. `mixture-of-experts` and `st-moe-pytorch` route with softmax into buffers of a fixed capacity
and take any module as experts, so they get SwiGLU ones like ours; nothing is dropped while outputs are compared, and
they are timed at the capacity they ship with. Their work grows with the square of the tokens among which they share a
buffer out, so they are timed twice: over the whole batch, as every other layer routes, and sequence by sequence. Their
balance loss is part of their forward pass and gets no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cells import Cell, Weights, ours

CAPACITY = 1.25  # the libraries' default while training
CHECKED_TOKENS = 256  # without a capacity limit buffers grow with the square of the tokens
TOLERANCE = 1e-4
SEQUENCE = 32  # tokens, as in the default recipe
MOST_COPIES = 300e6  # bytes: `batched_mm` copies the weights of its expert for every pair


class NotTheSame(RuntimeError):
    """A peer does not compute what we compute, so timing it would say nothing."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A layer with our weights."""

    forward: Callable[[Tensor], Tensor]
    dropless: Callable[[Tensor], Tensor]  # the same without a capacity limit
    leaves: list[Tensor]
    gating: str  # which of our affinities it uses


def peers(cell: Cell, weights: Weights) -> tuple[dict[str, Peer], list[str]]:
    """Those that can do this cell, each found to do the same as ours, and a sentence for each that cannot.

    Raises:
        NotTheSame: one of them does something else.
    """
    found, missing = {}, []
    for implementation in ("grouped_mm", "eager", "batched_mm"):
        if implementation == "batched_mm" and 3 * 4 * cell.T * cell.K * cell.d * cell.H > MOST_COPIES:
            missing.append(f"{cell}: batched_mm would copy over {MOST_COPIES / 1e6:.0f} MB of weights")
            continue
        found[f"transformers DeepseekV3MoE, {implementation}"] = _block(
            deepseek(cell, weights, implementation), "sigmoid"
        )
        if implementation != "batched_mm":
            found[f"transformers MixtralSparseMoeBlock, {implementation}"] = _block(
                _mixtral(cell, weights, implementation), "softmax"
            )
    for name, make in {"mixture-of-experts": _mixture_of_experts, "st-moe-pytorch": _st_moe}.items():
        if find_spec(name.replace("-", "_")) is None:
            missing.append(f"{name} is not installed (`make bench` installs it)")
        elif name == "mixture-of-experts" and cell.K != 2:
            missing.append(f"{cell}: {name} does K = 2 only")
        else:
            layer = make(cell, weights).to(weights.x_Td.device)
            found[f"{name}, whole batch"] = _limited(layer, cell.T)
            found[f"{name}, by sequence"] = _limited(layer, SEQUENCE)
    for name, peer in found.items():
        _refuse_other_results(name, peer, cell, weights)
    return found, missing


@torch.no_grad()
def _refuse_other_results(name: str, peer: Peer, cell: Cell, weights: Weights) -> None:
    """One token in 100 may differ: of two affinities that are equal but for rounding each may take another."""
    x_Td = weights.x_Td[:CHECKED_TOKENS]
    theirs_Td, ours_Td = peer.dropless(x_Td), ours(weights, x_Td, cell, peer.gating)
    differs_T = (theirs_Td - ours_Td).abs().amax(-1) > TOLERANCE
    if theirs_Td.shape != ours_Td.shape or differs_T.sum() > len(differs_T) / 100:
        raise NotTheSame(f"{name} at {cell} differs from ours in {int(differs_T.sum())} of {len(differs_T)} tokens.")


def deepseek(cell: Cell, weights: Weights, implementation: str) -> nn.Module:
    """transformers' block with no shared experts; `implementation` is how its experts are computed."""
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = DeepseekV3Config(
        hidden_size=cell.d,
        moe_intermediate_size=cell.H,
        n_routed_experts=cell.E,
        num_experts_per_tok=cell.K,
        n_group=1,
        topk_group=1,
        n_shared_experts=1,
        routed_scaling_factor=1.0,
        norm_topk_prob=True,
    )
    config._experts_implementation = implementation
    block = DeepseekV3MoE(config)
    block.shared_experts = Nothing()
    return _filled(block, weights)


def _mixtral(cell: Cell, weights: Weights, implementation: str) -> nn.Module:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=cell.d,
        intermediate_size=cell.H,
        num_local_experts=cell.E,
        num_experts_per_tok=cell.K,
    )
    config._experts_implementation = implementation
    return _filled(MixtralSparseMoeBlock(config), weights)


def _filled(block: nn.Module, weights: Weights) -> nn.Module:
    """transformers keeps each matrix the other way round."""
    block.gate.weight = nn.Parameter(weights.centroids_Ed.detach().clone())
    block.experts.gate_up_proj = nn.Parameter(weights.w_in_Ed2H.detach().transpose(1, 2).contiguous())
    block.experts.down_proj = nn.Parameter(weights.w_out_EHd.detach().transpose(1, 2).contiguous())
    return block.to(weights.centroids_Ed.device)


def _block(block: nn.Module, gating: str) -> Peer:
    def forward(x_Td: Tensor) -> Tensor:
        return block(x_Td[None])[0]

    return Peer(forward, forward, list(block.parameters()), gating)


class Nothing(nn.Module):
    """In place of shared experts."""

    def forward(self, x: Tensor) -> int:
        return 0


class Swiglu(nn.Module):
    """Experts like ours: all of them over (E, rows, d), or one over (rows, d)."""

    def __init__(self, w_in: Tensor, w_out: Tensor) -> None:
        super().__init__()
        self.w_in, self.w_out = (nn.Parameter(weight.detach().clone()) for weight in (w_in, w_out))

    def forward(self, rows: Tensor) -> Tensor:
        gate, up = (rows @ self.w_in).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ self.w_out


def _mixture_of_experts(cell: Cell, weights: Weights) -> nn.Module:
    from mixture_of_experts import MoE

    layer = MoE(
        dim=cell.d,
        num_experts=cell.E,
        experts=Swiglu(weights.w_in_Ed2H, weights.w_out_EHd),
        second_policy_train="all",
        second_policy_eval="all",
        capacity_factor_train=CAPACITY,
        capacity_factor_eval=cell.E,
    )
    layer.gate.w_gating = nn.Parameter(weights.centroids_Ed.detach().t().contiguous())
    return layer


def _st_moe(cell: Cell, weights: Weights) -> nn.Module:
    from st_moe_pytorch import MoE

    pairs = zip(weights.w_in_Ed2H, weights.w_out_EHd, strict=True)
    layer = MoE(
        dim=cell.d,
        num_experts=cell.E,
        gating_top_n=cell.K,
        experts=nn.ModuleList([Swiglu(*pair) for pair in pairs]),
        threshold_train=0.0,
        threshold_eval=0.0,
        capacity_factor_train=CAPACITY,
        capacity_factor_eval=float(cell.E),
    )
    layer.gate.to_gates.weight = nn.Parameter(weights.centroids_Ed.detach().clone())
    return layer


def _limited(layer: nn.Module, group: int) -> Peer:
    """A layer that shares out its buffers among so many tokens; their size is limited in training only."""

    def forward(x_Td: Tensor) -> Tensor:
        T, d = x_Td.shape
        return layer(x_Td.view(-1, min(group, T), d))[0].reshape(T, d)

    def dropless(x_Td: Tensor) -> Tensor:
        layer.eval()
        out_Td = forward(x_Td)
        layer.train()
        return out_Td

    return Peer(forward, dropless, list(layer.parameters()), "softmax")
