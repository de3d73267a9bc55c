"""What is trained? A stack of mixture-of-experts layers, as small as it can be and still collapse.

skills: x + MoE(norm(x)) per layer, then a linear head. text: byte and position embeddings, then attention and MoE per
layer, then a linear head over the 256 bytes. Shapes: T tokens in S sequences of N, d model width, E experts. Twins are
runs trained together: the weights of all are stacked (`ToyMoE.twins`), and hidden states, biases, routings and losses
have one more axis in front. The code is the same, and so are the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeviz import capacity
from moeviz.config import Knobs, Recipe
from moeviz.experts import mix
from moeviz.routing import Routing, decide, tally
from moeviz.together import Group, alone

ROUTER_STD = 0.02  # small, so that the first steps choose almost at random and collapse can be watched
EXPERT_IN_STD = (
    0.5  # in units of d^-0.5: experts that start weak learn to differ later, so collapse lasts as it does at scale
)
NUM_HEADS = 4


class Decision(NamedTuple):
    """What a layer decides for one group."""

    routing: Routing
    gates_TK: Tensor  # after drops
    kept_load_E: Tensor
    kept_TK: Tensor | None  # None: nothing could be dropped


class MoELayer(nn.Module):
    """residual + shared experts + sum of kept gates times routed experts (arXiv 2412.19437, eq. 12)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        E, d, H, shared = recipe.num_experts, recipe.d_model, recipe.d_expert, recipe.shared_experts
        self.centroids_Ed = nn.Parameter(torch.randn(E, d) * ROUTER_STD)
        self.w_in_Ed2H = nn.Parameter(torch.randn(E, d, 2 * H) * (EXPERT_IN_STD * d**-0.5))
        self.w_out_EHd = nn.Parameter(torch.randn(E, H, d) * H**-0.5)
        # Shared experts are one wide SwiGLU: side by side, their outputs add up.
        self.shared_in = nn.Parameter(torch.randn(d, 2 * shared * H) * d**-0.5) if shared else None
        self.shared_out = nn.Parameter(torch.randn(shared * H, d) * H**-0.5) if shared else None
        self.dtype = getattr(torch, recipe.precision)
        self.witness: Callable[..., None] | None = None  # is shown what a forward pass did (`truth.watching`)

    def forward(
        self,
        x_Td: Tensor,
        bias_E: Tensor,
        knobs: Knobs,
        protected_T: Tensor | None = None,
        token_id_T: Tensor | None = None,
    ) -> tuple[Tensor, Routing, Tensor]:
        """Output, routing and the load that survives dropping; `protected_T=None` means that nothing is dropped."""
        out_Td, [decision] = self.forward_groups(x_Td, bias_E, alone(knobs), protected_T, token_id_T)
        return out_Td, decision.routing, decision.kept_load_E

    def forward_groups(
        self,
        x_Td: Tensor,
        bias_E: Tensor,
        groups: list[Group],
        protected_T: Tensor | None,
        token_id_T: Tensor | None,
    ) -> tuple[Tensor, list[Decision]]:
        """Output of all runs, and the decision of each group of twins."""
        normed_Td = rms_norm(x_Td)
        mixed_Td, decisions = self.mixture(normed_Td, bias_E, groups, protected_T, token_id_T)
        out_Td = x_Td + mixed_Td
        if self.shared_in is not None:
            gate, up = (normed_Td @ self.shared_in).chunk(2, dim=-1)
            out_Td = out_Td + (F.silu(gate) * up) @ self.shared_out
        return out_Td, decisions

    def mixture(
        self,
        normed_Td: Tensor,
        bias_E: Tensor,
        groups: list[Group],
        protected_T: Tensor | None = None,
        token_id_T: Tensor | None = None,
    ) -> tuple[Tensor, list[Decision]]:
        """Router and routed experts alone."""
        logits_TE = normed_Td @ self.centroids_Ed.mT
        decisions = []
        for runs, knobs in groups:
            own = (_of(runs, logits_TE), _of(runs, bias_E), knobs, _of(runs, protected_T), token_id_T)
            decisions.append(_decide(*own))
            if self.witness is not None:
                self._show(runs, *own, decisions[-1])
        chosen_TK, gates_TK, valid_TK, load_E = _side_by_side(groups, decisions)
        inputs = (normed_Td, gates_TK, self.w_in_Ed2H, self.w_out_EHd)
        if self.dtype != normed_Td.dtype:
            inputs = [column.to(self.dtype) for column in inputs]
        x_Td, gates_TK, w_in_Ed2H, w_out_EHd = inputs
        mixed_Td = mix(x_Td, chosen_TK, gates_TK, w_in_Ed2H, w_out_EHd, valid_TK, load_E)
        return mixed_Td.to(normed_Td.dtype), decisions

    def _show(
        self,
        runs: list[int] | None,
        logits_TE: Tensor,
        bias_E: Tensor,
        knobs: Knobs,
        protected_T: Tensor | None,
        token_id_T: Tensor | None,
        decision: Decision,
    ) -> None:
        """Tell the witness, run by run."""

        def reroute(logits_TE: Tensor, bias_E: Tensor, rows: slice) -> Routing:
            return decide(logits_TE, bias_E, knobs, None if token_id_T is None else token_id_T[rows])

        kept_TK, lead = decision.kept_TK, logits_TE.shape[:-2]
        for place in range(lead[0]) if lead else [...]:
            self.witness(
                decision.routing.logits_TE.detach()[place],
                bias_E[place],
                decision.routing.twin(place),
                None if kept_TK is None else kept_TK[place],
                decision.gates_TK[place],
                reroute,
                0 if place is ... else runs[place] if runs else place,
            )


def _of(runs: list[int] | None, column: Tensor | None) -> Tensor | None:
    return column if runs is None or column is None else column[runs]


def _decide(
    logits_TE: Tensor, bias_E: Tensor, knobs: Knobs, protected_T: Tensor | None, token_id_T: Tensor | None
) -> Decision:
    """Route, then drop what exceeds the capacity."""
    routing = decide(logits_TE, bias_E, knobs, token_id_T)
    if protected_T is None or knobs.token_dropping == "none":
        return Decision(routing, routing.gates_TK, routing.load_E, None)
    E, affinity_TK = logits_TE.shape[-1], routing.scores_TE.detach().gather(-1, routing.chosen_TK)
    kept_TK = capacity.keep(routing.chosen_TK, affinity_TK, protected_T, E, knobs, routing.valid_TK)
    kept_load_E = tally(routing.chosen_TK.flatten(-2), E, kept_TK.flatten(-2))
    return Decision(routing, routing.gates_TK * kept_TK, kept_load_E, kept_TK)  # the survivors are not renormalised


def _side_by_side(groups: list[Group], decisions: list[Decision]) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Of all runs in their order: chosen experts, gates, which are no padding (twins may differ in K), and loads."""
    if len(groups) == 1:
        routing, gates_TK, _, _ = decisions[0]
        return routing.chosen_TK, gates_TK, routing.valid_TK, routing.load_E
    widest = max(decision.gates_TK.shape[-1] for decision in decisions)
    columns: dict[int, tuple[Tensor, ...]] = {}
    for (runs, _), (routing, gates_TK, _, _) in zip(groups, decisions, strict=True):
        real_TK = torch.ones_like(gates_TK, dtype=torch.bool) if routing.valid_TK is None else routing.valid_TK
        wide = [F.pad(column, (0, widest - column.shape[-1])) for column in (routing.chosen_TK, gates_TK, real_TK)]
        columns |= {run: tuple(part[place] for part in (*wide, routing.load_E)) for place, run in enumerate(runs)}
    in_order = zip(*(columns[run] for run in sorted(columns)), strict=True)
    chosen_TK, gates_TK, valid_TK, load_E = (torch.stack(parts) for parts in in_order)
    even = all(routing.valid_TK is None and gates.shape[-1] == widest for routing, gates, _, _ in decisions)
    return chosen_TK, gates_TK, None if even else valid_TK, load_E


class Linear(nn.Linear):
    """nn.Linear whose weight may have an axis for twins. Product and bias apart: to the bit the same either way."""

    def forward(self, x_Td: Tensor) -> Tensor:
        out_Td = x_Td @ self.weight.mT
        return out_Td if self.bias is None else out_Td + self.bias.unsqueeze(-2)


class Embedding(nn.Embedding):
    """nn.Embedding whose weight may have an axis for twins, who read the same tokens."""

    def forward(self, token_T: Tensor) -> Tensor:
        *twins, size, d = self.weight.shape
        if not twins:
            return F.embedding(token_T, self.weight)
        first_R1 = torch.arange(twins[0], device=token_T.device)[:, None] * size
        return F.embedding(token_T + first_R1, self.weight.view(-1, d))


class Attention(nn.Module):
    """x + causal self-attention within each sequence."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        d = recipe.d_model
        self.qkv = Linear(d, 3 * d, bias=False)
        self.out = Linear(d, d, bias=False)
        self.num_sequences = recipe.num_sequences

    def forward(self, x_Td: Tensor) -> Tensor:
        T, d = x_Td.shape[-2:]
        N, heads = T // self.num_sequences, NUM_HEADS
        qkv_SN3d = self.qkv(rms_norm(x_Td)).view(-1, N, 3, heads, d // heads)  # twins are so many more sequences
        mixed = F.scaled_dot_product_attention(*qkv_SN3d.permute(2, 0, 3, 1, 4), is_causal=True)
        return x_Td + self.out(mixed.transpose(1, 2).reshape(x_Td.shape))


class FurtherAhead(nn.Module):
    """One depth of multi-token prediction: depth k at position i predicts token i+1+k (arXiv 2412.19437, eq. 21-25).

    The hidden state of the depth before and the embedding of token i+k, each scaled to root mean square 1, side by
    side, are projected to the model's width and pass one block. The block is attention and a dense SwiGLU as wide as
    one expert, not a routed one as in the paper: loads, biases and layers stay those of the model that is watched.
    Embedding and head are the model's own. Multi-token prediction has nothing to do with balance.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        d, H = recipe.d_model, recipe.d_expert
        self.merge = Linear(2 * d, d, bias=False)
        self.attention = Attention(recipe)
        self.w_in = nn.Parameter(torch.randn(d, 2 * H) * d**-0.5)
        self.w_out = nn.Parameter(torch.randn(H, d) * H**-0.5)

    def forward(self, before_Td: Tensor, embedded_Td: Tensor) -> Tensor:
        """Hidden states of this depth, for the positions given: as many per sequence, in the sequences' order."""
        x_Td = self.attention(self.merge(torch.cat((rms_norm(before_Td), rms_norm(embedded_Td)), dim=-1)))
        gate, up = (rms_norm(x_Td) @ self.w_in).chunk(2, dim=-1)
        return x_Td + (F.silu(gate) * up) @ self.w_out


class ToyMoE(nn.Module):
    """The model of either task; `inputs` are vectors (T, d) for skills and bytes (T,) for text."""

    def __init__(self, recipe: Recipe, output_size: int) -> None:
        super().__init__()
        d, L, text = recipe.d_model, recipe.num_layers, recipe.task == "text"
        self.sequence_length = recipe.sequence_length
        self.embedding = Embedding(256, d) if text else None
        self.position = nn.Parameter(torch.randn(recipe.sequence_length, d) * 0.1) if text else None
        self.attention = nn.ModuleList([Attention(recipe) for _ in range(L)] if text else [])
        self.layers = nn.ModuleList([MoELayer(recipe) for _ in range(L)])
        self.head = Linear(d, output_size)
        # Last, so that the weights above are drawn alike with and without.
        self.further_ahead = nn.ModuleList([FurtherAhead(recipe) for _ in range(recipe.mtp_depth if text else 0)])

    def twins(self, number: int) -> ToyMoE:
        """Give every weight an axis of so many equal twins; returns the model itself."""
        for module in self.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                stacked = weight.detach().expand(number, *weight.shape).clone()
                setattr(module, name, nn.Parameter(stacked))
        return self

    def forward(
        self,
        inputs: Tensor,
        bias_LE: Tensor,
        knobs: Knobs,
        protected_T: Tensor | None = None,
        token_id_T: Tensor | None = None,
    ) -> tuple[Tensor, list[Routing], Tensor]:
        """Predictions (T, output_size), one routing per layer, and the kept loads (L, E)."""
        hidden_Td, [decisions] = self.hidden(inputs, bias_LE, alone(knobs), protected_T, token_id_T)
        kept_load_LE = torch.stack([decision.kept_load_E for decision in decisions], dim=-2)
        return self.predict(hidden_Td), [decision.routing for decision in decisions], kept_load_LE

    def hidden(
        self,
        inputs: Tensor,
        bias_LE: Tensor,
        groups: list[Group],
        protected_T: Tensor | None = None,
        token_id_T: Tensor | None = None,
    ) -> tuple[Tensor, list[list[Decision]]]:
        """What the head reads (T, d), and for each group the decisions of all layers."""
        x_Td = self._embed(inputs)
        by_layer = []
        for index, (layer, bias_E) in enumerate(zip(self.layers, bias_LE.unbind(-2), strict=True)):
            if self.embedding is not None:
                x_Td = self.attention[index](x_Td)
            x_Td, decisions = layer.forward_groups(x_Td, bias_E, groups, protected_T, token_id_T)
            by_layer.append(decisions)
        return x_Td, [list(decisions) for decisions in zip(*by_layer, strict=True)]

    def _embed(self, inputs: Tensor) -> Tensor:
        if self.embedding is None:
            return inputs.expand(*self.head.weight.shape[:-2], *inputs.shape)
        x_SNd = self.embedding(inputs).unflatten(-2, (-1, self.sequence_length))
        return (x_SNd + self.position.unsqueeze(-3)).flatten(-3, -2)

    def predict(self, hidden_Td: Tensor) -> Tensor:
        """Predictions (T, output_size) of hidden states."""
        return self.head(rms_norm(hidden_Td) if self.embedding is not None else hidden_Td)

    def look_ahead(self, inputs: Tensor, hidden_Td: Tensor) -> list[Tensor]:
        """Predictions of tokens further ahead, one entry per depth, depth 1 first.

        Depth k covers the N - k positions of each sequence that have a target in its window, in the sequences' order:
        shape (S (N - k), output_size). A depth that no position of so short a sequence has a target for is left out.
        """
        if not self.further_ahead:
            return []
        N = self.sequence_length
        embedded_SNd, predictions = self.embedding(inputs).unflatten(-2, (-1, N)), []
        for depth, module in enumerate(self.further_ahead[: N - 1], start=1):
            before_SNd = hidden_Td.unflatten(-2, (-1, N - depth + 1))[..., : N - depth, :]
            hidden_Td = module(before_SNd.flatten(-3, -2), embedded_SNd[..., depth:, :].flatten(-3, -2))
            predictions.append(self.predict(hidden_Td))
        return predictions

    def router(self) -> list[Tensor]:
        """The centroids of all layers."""
        return [layer.centroids_Ed for layer in self.layers]

    def trunk(self) -> list[Tensor]:
        """Every other parameter that comes before some router, so that a balance loss can change it.

        Nothing on skills with one layer; never the last layer's experts, the head or the modules that look ahead.
        """
        before = nn.ModuleList([*self.attention, *self.layers[:-1]])
        if self.embedding is not None:
            before.append(self.embedding)
        found = [part for name, part in before.named_parameters() if not name.endswith("centroids_Ed")]
        return found if self.position is None else [*found, self.position]


def rms_norm(x_Td: Tensor) -> Tensor:
    """Each token scaled to root mean square 1, without learned weights (arXiv 1910.07467)."""
    return _RMSNorm.apply(x_Td)


class _RMSNorm(torch.autograd.Function):
    """By hand for its backward pass, which torch takes through every operation of the forward pass: 3 times slower."""

    @staticmethod
    def forward(ctx, x_Td):
        norm_T1 = torch.linalg.vector_norm(x_Td, dim=-1, keepdim=True)
        mean_T1 = norm_T1.square_().div_(x_Td.shape[-1]).add_(torch.finfo(x_Td.dtype).eps)
        scale_T1 = mean_T1.sqrt().div_(mean_T1)  # not rsqrt: a token too large to square shall be NaN and not 0
        normed_Td = x_Td * scale_T1
        ctx.save_for_backward(normed_Td, scale_T1)
        return normed_Td

    @staticmethod
    def backward(ctx, grad_Td):
        normed_Td, scale_T1 = ctx.saved_tensors
        along_T1 = (grad_Td * normed_Td).mean(-1, keepdim=True)
        return torch.addcmul(grad_Td, normed_Td, along_T1, value=-1).mul_(scale_T1)
