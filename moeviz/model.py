"""What is trained? A stack of mixture-of-experts layers, as small as it can be and still collapse.

skills: x + MoE(norm(x)) per layer, then a linear head. text: byte and position embeddings, then attention and MoE per
layer, then a linear head over the 256 bytes. Shapes: T tokens in S sequences of N, d model width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeviz import capacity
from moeviz.config import Knobs, Recipe
from moeviz.experts import mix
from moeviz.routing import Routing, route

ROUTER_STD = 0.02  # small, so that the first steps choose almost at random and collapse can be watched
EXPERT_IN_STD = (
    0.5  # in units of d^-0.5: experts that start weak learn to differ later, so collapse lasts as it does at scale
)
NUM_HEADS = 4


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
        self.witness: Callable[..., None] | None = None  # is shown what a forward pass did (`truth.watching`)

    def forward(
        self,
        x_Td: Tensor,
        bias_E: Tensor,
        knobs: Knobs,
        protected_T: Tensor | None,
        token_id_T: Tensor | None = None,
    ) -> tuple[Tensor, Routing, Tensor]:
        """Output, routing and the load that survives dropping; `protected_T=None` means that nothing is dropped."""
        normed_Td = rms_norm(x_Td)
        routing = route(normed_Td @ self.centroids_Ed.t(), bias_E, knobs, token_id_T)
        gates_TK, kept_load_E, kept_TK = routing.gates_TK, routing.load_E, None
        if protected_T is not None and knobs.token_dropping != "none":
            affinity_TK = routing.scores_TE.detach().gather(1, routing.chosen_TK)
            kept_TK = capacity.keep(routing.chosen_TK, affinity_TK, protected_T, len(bias_E), knobs, routing.valid_TK)
            gates_TK = gates_TK * kept_TK  # the survivors are not renormalised
            kept_load_E = torch.bincount(routing.chosen_TK[kept_TK], minlength=len(bias_E))
        if self.witness is not None:

            def reroute(logits_TE: Tensor, bias_E: Tensor, rows: slice) -> Routing:
                return route(logits_TE, bias_E, knobs, None if token_id_T is None else token_id_T[rows])

            self.witness(routing.logits_TE.detach(), bias_E, routing, kept_TK, gates_TK, reroute)
        out_Td = x_Td + mix(normed_Td, routing.chosen_TK, gates_TK, self.w_in_Ed2H, self.w_out_EHd)
        if self.shared_in is not None:
            gate, up = (normed_Td @ self.shared_in).chunk(2, dim=-1)
            out_Td = out_Td + (F.silu(gate) * up) @ self.shared_out
        return out_Td, routing, kept_load_E


class Attention(nn.Module):
    """x + causal self-attention within each sequence."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        d = recipe.d_model
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.num_sequences = recipe.num_sequences

    def forward(self, x_Td: Tensor) -> Tensor:
        T, d = x_Td.shape
        S, heads = self.num_sequences, NUM_HEADS
        q, k, v = self.qkv(rms_norm(x_Td)).view(S, T // S, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x_Td + self.out(mixed.transpose(1, 2).reshape(T, d))


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
        self.merge = nn.Linear(2 * d, d, bias=False)
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
        self.embedding = nn.Embedding(256, d) if text else None
        self.position = nn.Parameter(torch.randn(recipe.sequence_length, d) * 0.1) if text else None
        self.attention = nn.ModuleList([Attention(recipe) for _ in range(L)] if text else [])
        self.layers = nn.ModuleList([MoELayer(recipe) for _ in range(L)])
        self.head = nn.Linear(d, output_size)
        # Last, so that the weights above are drawn alike with and without.
        self.further_ahead = nn.ModuleList([FurtherAhead(recipe) for _ in range(recipe.mtp_depth if text else 0)])

    def forward(
        self,
        inputs: Tensor,
        bias_LE: Tensor,
        knobs: Knobs,
        protected_T: Tensor | None = None,
        token_id_T: Tensor | None = None,
    ) -> tuple[Tensor, list[Routing], Tensor]:
        """Predictions (T, output_size), one routing per layer, and the kept loads (L, E)."""
        hidden_Td, routings, kept_load_LE = self.hidden(inputs, bias_LE, knobs, protected_T, token_id_T)
        return self.predict(hidden_Td), routings, kept_load_LE

    def hidden(
        self,
        inputs: Tensor,
        bias_LE: Tensor,
        knobs: Knobs,
        protected_T: Tensor | None = None,
        token_id_T: Tensor | None = None,
    ) -> tuple[Tensor, list[Routing], Tensor]:
        """What the head reads (T, d), one routing per layer, and the kept loads (L, E)."""
        x_Td = inputs
        if self.embedding is not None:
            x_Td = self.embedding(inputs) + self.position.repeat(len(inputs) // len(self.position), 1)
        routings, kept_loads = [], []
        for index, (layer, bias_E) in enumerate(zip(self.layers, bias_LE.unbind(0), strict=True)):
            if self.embedding is not None:
                x_Td = self.attention[index](x_Td)
            x_Td, routing, kept_load_E = layer(x_Td, bias_E, knobs, protected_T, token_id_T)
            routings.append(routing)
            kept_loads.append(kept_load_E)
        return x_Td, routings, torch.stack(kept_loads)

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
        S, (N, d) = len(inputs) // len(self.position), self.position.shape
        embedded_SNd, predictions = self.embedding(inputs).view(S, N, d), []
        for depth, module in enumerate(self.further_ahead[: N - 1], start=1):
            before_SNd = hidden_Td.view(S, -1, d)[:, : N - depth]
            hidden_Td = module(before_SNd.flatten(0, 1), embedded_SNd[:, depth:].flatten(0, 1))
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
    """Each token scaled to root mean square 1, without learned weights."""
    return F.rms_norm(x_Td, x_Td.shape[-1:])
