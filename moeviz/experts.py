"""How are all experts computed at once?

Sort the (token, expert) pairs by expert, multiply each expert's block of rows by its own weights in one grouped
product, and add the results back to their tokens. Nothing is padded, so the cost does not depend on balance: it is
the same under total collapse. Shapes: T tokens, K experts per token, P = T K pairs, E experts, d model width, H hidden
size. The axis of R runs in front of everything means so many more experts to the product.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moeviz.routing import tally


def mix(
    x_RTd: Tensor,
    chosen_RTK: Tensor,
    gates_RTK: Tensor,
    w_in_REd2H: Tensor,
    w_out_REHd: Tensor,
    valid_RTK: Tensor | None = None,
    load_RE: Tensor | None = None,
) -> Tensor:
    """sum over K of gate * expert(x), each expert a SwiGLU: (silu(x W_gate) * (x W_up)) W_out.

    Args:
        gates_RTK: a dropped pair, gate 0, is computed like any other and adds nothing.
        w_in_REd2H: W_gate and W_up side by side.
        valid_RTK: which pairs are no padding (None: all). Padding is not computed.
        load_RE: how many pairs each expert has, if that is known already.

    Returns:
        Shape (R, T, d).
    """
    (R, E), device = w_in_REd2H.shape[:2], x_RTd.device
    expert_P, gates_P = (chosen_RTK + _first_experts(R, E, device)).flatten(), gates_RTK.flatten()
    token_P, first_T = _pairs(R * x_RTd.shape[1], chosen_RTK.shape[-1], device)
    if valid_RTK is not None:
        expert_P, gates_P, token_P = (column_P[valid_RTK.flatten()] for column_P in (expert_P, gates_P, token_P))
        count_T = valid_RTK.flatten(0, 1).sum(-1)
        first_T = count_T.cumsum(0) - count_T
    if grouped_mm_works(device.type):
        load_E = tally(expert_P, R * E) if load_RE is None else load_RE.flatten()
        ends_E = load_E.cumsum(0, dtype=torch.int32)
        return _GroupedExperts.apply(x_RTd, gates_P, expert_P, token_P, first_T, ends_E, w_in_REd2H, w_out_REHd)
    return _loop(x_RTd, gates_P, expert_P, token_P, w_in_REd2H, w_out_REHd)


def mix_by_loop(x_RTd: Tensor, chosen_RTK: Tensor, gates_RTK: Tensor, w_in_REd2H: Tensor, w_out_REHd: Tensor) -> Tensor:
    """The same, one expert after another: the readable reference."""
    chosen_RTK = chosen_RTK + _first_experts(*w_in_REd2H.shape[:2], x_RTd.device)
    token_P, _ = _pairs(x_RTd.shape[0] * x_RTd.shape[1], chosen_RTK.shape[-1], x_RTd.device)
    return _loop(x_RTd, gates_RTK.flatten(), chosen_RTK.flatten(), token_P, w_in_REd2H, w_out_REHd)


def _loop(
    x_RTd: Tensor, gates_P: Tensor, expert_P: Tensor, token_P: Tensor, w_in_REd2H: Tensor, w_out_REHd: Tensor
) -> Tensor:
    """Where there is no grouped product, and what it is tested against."""
    x_Td, out_Td = x_RTd.flatten(0, 1), torch.zeros_like(x_RTd).flatten(0, 1)
    weights = zip(w_in_REd2H.flatten(0, 1).unbind(), w_out_REHd.flatten(0, 1).unbind(), strict=True)
    for expert, (w_in, w_out) in enumerate(weights):
        pair = (expert_P == expert).nonzero()[:, 0]
        gate, up = (x_Td[token_P[pair]] @ w_in).chunk(2, dim=-1)
        out_Td = out_Td.index_add(0, token_P[pair], gates_P[pair, None] * ((F.silu(gate) * up) @ w_out))
    return out_Td.view_as(x_RTd)


@cache
def grouped_mm_works(device_type: str) -> bool:
    """Whether this torch has a float32 grouped product on this kind of device: asked once, by trying."""
    try:
        rows, ends = torch.ones(4, 4, device=device_type), torch.tensor([1, 4], device=device_type, dtype=torch.int32)
        product = F.grouped_mm(rows, torch.ones(2, 4, 4, device=device_type), offs=ends)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return bool((product == 4).all())


@lru_cache(maxsize=64)
def _first_experts(runs: int, num_experts: int, device: torch.device) -> Tensor:
    """Where each run's experts begin among those of all runs, side by side."""
    return torch.arange(0, runs * num_experts, num_experts, device=device)[:, None, None]


@lru_cache(maxsize=64)
def _pairs(tokens: int, top_k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The token of each pair, and the first pair of each token."""
    token_P = torch.arange(tokens, device=device).repeat_interleave(top_k)
    return token_P, torch.arange(tokens, device=device) * top_k


def _sorted_by(expert_P: Tensor, num_experts: int) -> Tensor:
    """The order in which pairs of one expert stand together, the earlier token first."""
    if expert_P.device.type != "cpu" or num_experts > 2**15:
        return expert_P.argsort(stable=True)
    # NumPy sorts small whole numbers digit by digit: 4 to 20 times faster than torch.
    small = torch.uint8 if num_experts <= 2**8 else torch.int16
    return torch.from_numpy(np.argsort(expert_P.to(small).numpy(), kind="stable"))


class _GroupedExperts(torch.autograd.Function):
    """`mix` as one autograd node. By hand, the backward pass re-uses the sorted rows, lets go of each result as soon
    as it is used and needs no atomics, so the same input gives the same bits; written as separate operations it is 1.3
    to 1.7 times slower."""

    @staticmethod
    def forward(ctx, x_RTd, gates_P, expert_P, token_P, first_T, ends_E, w_in_REd2H, w_out_REHd):
        ctx.runs = len(x_RTd)
        x_Td, w_in_Ed2H, w_out_EHd = (part.flatten(0, 1) for part in (x_RTd, w_in_REd2H, w_out_REHd))
        order_P = _sorted_by(expert_P, len(w_in_Ed2H))
        token_P = token_P.index_select(0, order_P)  # from here on, rows are in the experts' order
        place_P = torch.empty_like(order_P).index_copy_(0, order_P, _count_up(len(order_P), order_P.device))
        ctx.save_for_backward(x_Td, gates_P, order_P, ends_E, token_P, place_P, first_T, w_in_Ed2H, w_out_EHd)
        ctx.results = _through_experts(x_Td, token_P, ends_E, w_in_Ed2H, w_out_EHd)
        return _add_up(ctx.results[-1], place_P, first_T, gates_P).view_as(x_RTd)

    @staticmethod
    def backward(ctx, grad_RTd):
        grad_Td = grad_RTd.flatten(0, 1)
        x_Td, gates_P, order_P, ends_E, token_P, place_P, first_T, w_in, w_out = ctx.saved_tensors
        # A second pass over a graph that was kept finds nothing left and computes it again.
        results = ctx.results or _through_experts(x_Td, token_P, ends_E, w_in, w_out)
        rows_Pd, hidden_P2H, silu_PH, act_PH, out_Pd = results
        del results
        ctx.results = None
        gate_PH, up_PH = hidden_P2H.chunk(2, dim=-1)
        grad_out_Pd = grad_Td.index_select(0, token_P)
        grad_gates_P = torch.bmm(grad_out_Pd[:, None], out_Pd[:, :, None]).flatten().index_select(0, place_P)
        del out_Pd
        grad_out_Pd *= gates_P.index_select(0, order_P)[:, None]
        grad_w_out = F.grouped_mm(act_PH.t(), grad_out_Pd, offs=ends_E)
        del act_PH
        grad_act_PH = F.grouped_mm(grad_out_Pd, w_out.transpose(1, 2), offs=ends_E)
        del grad_out_Pd
        grad_hidden_P2H = torch.empty_like(hidden_P2H)
        grad_gate_PH, grad_up_PH = grad_hidden_P2H.chunk(2, dim=-1)
        torch.mul(grad_act_PH, silu_PH, out=grad_up_PH)
        grad_act_PH *= up_PH
        torch.ops.aten.silu_backward.grad_input(grad_act_PH, gate_PH, grad_input=grad_gate_PH)
        del silu_PH, hidden_P2H, gate_PH, up_PH, grad_act_PH
        grad_w_in = F.grouped_mm(rows_Pd.t(), grad_hidden_P2H, offs=ends_E)
        del rows_Pd
        grad_x_Td = None
        if ctx.needs_input_grad[0]:  # not so in the first layer of the skills task, which reads the data
            grad_rows_Pd = F.grouped_mm(grad_hidden_P2H, w_in.transpose(1, 2), offs=ends_E)
            grad_x_Td = _add_up(grad_rows_Pd, place_P, first_T).view_as(grad_RTd)
        weights = (part.unflatten(0, (ctx.runs, -1)) for part in (grad_w_in, grad_w_out))
        return grad_x_Td, grad_gates_P, None, None, None, None, *weights


def _through_experts(
    x_Td: Tensor, token_P: Tensor, ends_E: Tensor, w_in_Ed2H: Tensor, w_out_EHd: Tensor
) -> tuple[Tensor, ...]:
    """Rows, hidden layer with both its halves, silu of the first, its product with the second, and the output."""
    rows_Pd = x_Td.index_select(0, token_P)
    hidden_P2H = F.grouped_mm(rows_Pd, w_in_Ed2H, offs=ends_E)
    gate_PH, up_PH = hidden_P2H.chunk(2, dim=-1)
    silu_PH = F.silu(gate_PH)
    act_PH = silu_PH * up_PH
    return rows_Pd, hidden_P2H, silu_PH, act_PH, F.grouped_mm(act_PH, w_out_EHd, offs=ends_E)


def _add_up(rows_Pd: Tensor, place_P: Tensor, first_T: Tensor, weight_P: Tensor | None = None) -> Tensor:
    """Sum of each token's rows, which stand at `place_P` in the order of tokens: a gather, a product and a sum in
    one pass over memory."""
    return torch.embedding_bag(rows_Pd, place_P, first_T, False, 0, False, weight_P)[0]


@lru_cache(maxsize=64)
def _count_up(number: int, device: torch.device) -> Tensor:
    return torch.arange(number, device=device)
