"""What is trained? A stack of mixture-of-experts layers, as small as it can be and still collapse.

skills: x + MoE(norm(x)) per layer, then a linear head. text: byte and position embeddings, then attention and MoE per
layer, then a linear head over the 256 bytes.

Weights, hidden states, biases, routings and losses carry the axis of runs in front: R runs of one recipe are trained
together, and a run by itself is a stack of one. So a run is computed by the same products whoever is beside it. Shapes:
R runs, T tokens in S sequences of N, d model width, E experts, K experts per token, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeviz import capacity
from moeviz.config import Knobs, Recipe
from moeviz.experts import mix
from moeviz.routing import Routing, decide, tally
from moeviz.together import Group

ROUTER_STD = 0.02  # small, so that the first steps choose almost at random and collapse can be watched
EXPERT_IN_STD = (
    0.5  # in units of d^-0.5: experts that start weak learn to differ later, so collapse lasts as it does at scale
)
NUM_HEADS = 4


class Decision(NamedTuple):
    """What a layer decides for the runs of one group."""

    routing: Routing
    gates_RTK: Tensor  # after drops
    kept_load_RE: Tensor
    kept_RTK: Tensor | None  # None: nothing could be dropped


class MoELayer(nn.Module):
    """residual + shared experts + sum of kept gates times routed experts (arXiv 2412.19437, eq. 12)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        E, d, H, shared = recipe.num_experts, recipe.d_model, recipe.d_expert, recipe.shared_experts
        # A weight's name is that of one run's part, as it stands in checkpoints.
        self.centroids_Ed = nn.Parameter(torch.randn(1, E, d) * ROUTER_STD)
        self.w_in_Ed2H = nn.Parameter(torch.randn(1, E, d, 2 * H) * (EXPERT_IN_STD * d**-0.5))
        self.w_out_EHd = nn.Parameter(torch.randn(1, E, H, d) * H**-0.5)
        # Shared experts are one wide SwiGLU: side by side, their outputs add up.
        self.shared_in = nn.Parameter(torch.randn(1, d, 2 * shared * H) * d**-0.5) if shared else None
        self.shared_out = nn.Parameter(torch.randn(1, shared * H, d) * H**-0.5) if shared else None
        self.dtype = getattr(torch, recipe.precision)
        self.witness: Callable[..., None] | None = None  # is shown what a forward pass did (`truth.watching`)

    def forward(
        self,
        x_RTd: Tensor,
        bias_RE: Tensor,
        groups: list[Group],
        protected_RT: Tensor | None = None,
        token_id_T: Tensor | None = None,
    ) -> tuple[Tensor, list[Decision]]:
        """Output of all runs, and the decision for each group; `protected_RT=None` means that nothing is dropped."""
        normed_RTd = rms_norm(x_RTd)
        mixed_RTd, decisions = self.mixture(normed_RTd, bias_RE, groups, protected_RT, token_id_T)
        out_RTd = x_RTd + mixed_RTd
        if self.shared_in is not None:
            gate, up = (normed_RTd @ self.shared_in).chunk(2, dim=-1)
            out_RTd = out_RTd + (F.silu(gate) * up) @ self.shared_out
        return out_RTd, decisions

    def mixture(
        self,
        normed_RTd: Tensor,
        bias_RE: Tensor,
        groups: list[Group],
        protected_RT: Tensor | None = None,
        token_id_T: Tensor | None = None,
    ) -> tuple[Tensor, list[Decision]]:
        """Router and routed experts alone."""
        logits_RTE = torch.bmm(normed_RTd, self.centroids_Ed.mT)
        decisions = []
        for runs, knobs in groups:
            own = (_of(runs, logits_RTE), _of(runs, bias_RE), knobs, _of(runs, protected_RT), token_id_T)
            decisions.append(_decide(*own))
            if self.witness is not None:
                self._show(runs, *own, decisions[-1])
        chosen_RTK, gates_RTK, valid_RTK, load_RE = _side_by_side(groups, decisions)
        inputs = (normed_RTd, gates_RTK, self.w_in_Ed2H, self.w_out_EHd)
        if self.dtype != normed_RTd.dtype:
            inputs = [column.to(self.dtype) for column in inputs]
        x_RTd, gates_RTK, w_in_REd2H, w_out_REHd = inputs
        mixed_RTd = mix(x_RTd, chosen_RTK, gates_RTK, w_in_REd2H, w_out_REHd, valid_RTK, load_RE)
        return mixed_RTd.to(normed_RTd.dtype), decisions

    def _show(
        self,
        runs: list[int],
        logits_RTE: Tensor,
        bias_RE: Tensor,
        knobs: Knobs,
        protected_RT: Tensor | None,
        token_id_T: Tensor | None,
        decision: Decision,
    ) -> None:
        """Tell the witness, run by run."""

        def reroute(logits_TE: Tensor, bias_E: Tensor, rows: slice) -> Routing:
            return decide(logits_TE, bias_E, knobs, None if token_id_T is None else token_id_T[rows])

        for place, run in enumerate(runs):
            self.witness(
                decision.routing.logits_TE.detach()[place],
                bias_RE[place],
                decision.routing.twin(place),
                None if decision.kept_RTK is None else decision.kept_RTK[place],
                decision.gates_RTK[place],
                reroute,
                run,
            )


def _of(runs: list[int], column_R: Tensor | None) -> Tensor | None:
    """These runs' part of a column that has all; of all runs, which stand in order, the column itself."""
    return column_R if column_R is None or len(runs) == len(column_R) else column_R[runs]


def _decide(
    logits_RTE: Tensor, bias_RE: Tensor, knobs: Knobs, protected_RT: Tensor | None, token_id_T: Tensor | None
) -> Decision:
    """Route, then drop what exceeds the capacity."""
    routing = decide(logits_RTE, bias_RE, knobs, token_id_T)
    if protected_RT is None or knobs.token_dropping == "none":
        return Decision(routing, routing.gates_TK, routing.load_E, None)
    E, affinity_RTK = logits_RTE.shape[-1], routing.scores_TE.detach().gather(-1, routing.chosen_TK)
    kept_RTK = capacity.keep(routing.chosen_TK, affinity_RTK, protected_RT, E, knobs, routing.valid_TK)
    kept_load_RE = tally(routing.chosen_TK.flatten(-2), E, kept_RTK.flatten(-2))
    return Decision(routing, routing.gates_TK * kept_RTK, kept_load_RE, kept_RTK)  # survivors are not renormalised


def _side_by_side(groups: list[Group], decisions: list[Decision]) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Of all runs in their order: chosen experts, gates, which are no padding (runs may differ in K), and loads."""
    if len(groups) == 1:
        routing, gates_RTK, _, _ = decisions[0]
        return routing.chosen_TK, gates_RTK, routing.valid_TK, routing.load_E
    widest = max(decision.gates_RTK.shape[-1] for decision in decisions)
    columns: dict[int, tuple[Tensor, ...]] = {}
    for (runs, _), (routing, gates_RTK, _, _) in zip(groups, decisions, strict=True):
        real_RTK = torch.ones_like(gates_RTK, dtype=torch.bool) if routing.valid_TK is None else routing.valid_TK
        wide = [F.pad(column, (0, widest - column.shape[-1])) for column in (routing.chosen_TK, gates_RTK, real_RTK)]
        columns |= {run: tuple(part[place] for part in (*wide, routing.load_E)) for place, run in enumerate(runs)}
    in_order = zip(*(columns[run] for run in sorted(columns)), strict=True)
    chosen_RTK, gates_RTK, valid_RTK, load_RE = (torch.stack(parts) for parts in in_order)
    even = all(routing.valid_TK is None and gates.shape[-1] == widest for routing, gates, _, _ in decisions)
    return chosen_RTK, gates_RTK, None if even else valid_RTK, load_RE


class Linear(nn.Linear):
    """nn.Linear with the axis of runs. Product and bias apart, so that each is the same whoever is beside a run."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _stack(self, 1)

    def forward(self, x_RTd: Tensor) -> Tensor:
        out_RTd = torch.bmm(x_RTd, self.weight.mT)
        return out_RTd if self.bias is None else out_RTd + self.bias.unsqueeze(-2)


class Embedding(nn.Embedding):
    """nn.Embedding with the axis of runs, who all read the same tokens."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        _stack(self, 1)

    def forward(self, token_T: Tensor) -> Tensor:
        R, size, d = self.weight.shape
        first_R1 = torch.arange(0, R * size, size, device=token_T.device)[:, None]
        return F.embedding(token_T + first_R1, self.weight.view(-1, d))


def _stack(module: nn.Module, runs: int) -> None:
    """Give the module's own weights an axis of so many equal runs."""
    for name, weight in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(weight.detach().expand(runs, *weight.shape).clone()))


class Attention(nn.Module):
    """x + causal self-attention within each sequence."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        d = recipe.d_model
        self.qkv = Linear(d, 3 * d, bias=False)
        self.out = Linear(d, d, bias=False)
        self.num_sequences = recipe.num_sequences

    def forward(self, x_RTd: Tensor) -> Tensor:
        T, d = x_RTd.shape[-2:]
        N, heads = T // self.num_sequences, NUM_HEADS
        qkv_SN3d = self.qkv(rms_norm(x_RTd)).view(-1, N, 3, heads, d // heads)  # runs are so many more sequences
        mixed = F.scaled_dot_product_attention(*qkv_SN3d.permute(2, 0, 3, 1, 4), is_causal=True)
        return x_RTd + self.out(mixed.transpose(1, 2).reshape(x_RTd.shape))


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
        self.w_in = nn.Parameter(torch.randn(1, d, 2 * H) * d**-0.5)
        self.w_out = nn.Parameter(torch.randn(1, H, d) * H**-0.5)

    def forward(self, before_RTd: Tensor, embedded_RTd: Tensor) -> Tensor:
        """Hidden states of this depth, for the positions given: as many per sequence, in the sequences' order."""
        x_RTd = self.attention(self.merge(torch.cat((rms_norm(before_RTd), rms_norm(embedded_RTd)), dim=-1)))
        gate, up = (rms_norm(x_RTd) @ self.w_in).chunk(2, dim=-1)
        return x_RTd + (F.silu(gate) * up) @ self.w_out


class ToyMoE(nn.Module):
    """The model of either task; `inputs` are vectors (T, d) for skills and bytes (T,) for text."""

    def __init__(self, recipe: Recipe, output_size: int, runs: int = 1) -> None:
        super().__init__()
        d, L, text = recipe.d_model, recipe.num_layers, recipe.task == "text"
        self.sequence_length = recipe.sequence_length
        self.embedding = Embedding(256, d) if text else None
        self.position = nn.Parameter(torch.randn(1, recipe.sequence_length, d) * 0.1) if text else None
        self.attention = nn.ModuleList([Attention(recipe) for _ in range(L)] if text else [])
        self.layers = nn.ModuleList([MoELayer(recipe) for _ in range(L)])
        self.head = Linear(d, output_size)
        # Last, so that the weights above are drawn alike with and without.
        self.further_ahead = nn.ModuleList([FurtherAhead(recipe) for _ in range(recipe.mtp_depth if text else 0)])
        if runs > 1:
            self._repeat(runs)

    def _repeat(self, runs: int) -> None:
        """Make so many equal runs of the first."""
        for module in self.modules():
            for name, weight_1 in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(weight_1.detach().repeat(runs, *[1] * (weight_1.dim() - 1))))

    def hidden(
        self,
        inputs: Tensor,
        bias_RLE: Tensor,
        groups: list[Group],
        protected_RT: Tensor | None = None,
        token_id_T: Tensor | None = None,
    ) -> tuple[Tensor, list[list[Decision]]]:
        """What the head reads (R, T, d), and for each group the decisions of all layers."""
        x_RTd = self._embed(inputs)
        by_layer = []
        for index, (layer, bias_RE) in enumerate(zip(self.layers, bias_RLE.unbind(1), strict=True)):
            if self.embedding is not None:
                x_RTd = self.attention[index](x_RTd)
            x_RTd, decisions = layer(x_RTd, bias_RE, groups, protected_RT, token_id_T)
            by_layer.append(decisions)
        return x_RTd, [list(decisions) for decisions in zip(*by_layer, strict=True)]

    def _embed(self, inputs: Tensor) -> Tensor:
        if self.embedding is None:
            return inputs.expand(len(self.head.weight), *inputs.shape)
        x_RSNd = self.embedding(inputs).unflatten(-2, (-1, self.sequence_length))
        return (x_RSNd + self.position.unsqueeze(1)).flatten(1, 2)

    def predict(self, hidden_RTd: Tensor) -> Tensor:
        """Predictions (R, T, output_size) of hidden states."""
        return self.head(rms_norm(hidden_RTd) if self.embedding is not None else hidden_RTd)

    def look_ahead(self, inputs: Tensor, hidden_RTd: Tensor) -> list[Tensor]:
        """Predictions of tokens further ahead, one entry per depth, depth 1 first.

        Depth k covers the N - k positions of each sequence that have a target in its window, in the sequences' order:
        shape (R, S (N - k), output_size). A depth that no position of so short a sequence has a target for is left out.
        """
        if not self.further_ahead:
            return []
        N = self.sequence_length
        embedded_RSNd, predictions = self.embedding(inputs).unflatten(-2, (-1, N)), []
        for depth, module in enumerate(self.further_ahead[: N - 1], start=1):
            before_RSNd = hidden_RTd.unflatten(-2, (-1, N - depth + 1))[..., : N - depth, :]
            hidden_RTd = module(before_RSNd.flatten(1, 2), embedded_RSNd[..., depth:, :].flatten(1, 2))
            predictions.append(self.predict(hidden_RTd))
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
