"""Is the fast way to compute all experts the same function, with the same gradients, as the slow way?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moeviz import experts
from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.experts import grouped_mm_works
from moeviz.model import MoELayer
from moeviz.routing import route
from tests.one_run import layer_of, mix, mix_by_loop

needs_grouped_product = pytest.mark.skipif(
    not grouped_mm_works("cpu"), reason="this torch has no float32 grouped product on the CPU"
)


def inputs(T: int, E: int, d: int, H: int, chosen_TK: Tensor, dtype=torch.float32) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(T + 31 * E)
    x_Td = torch.randn(T, d, generator=random, dtype=dtype, requires_grad=True)
    gates_TK = torch.rand(chosen_TK.shape, generator=random, dtype=dtype, requires_grad=True)
    w_in = (torch.randn(E, d, 2 * H, generator=random, dtype=dtype) * d**-0.5).requires_grad_()
    w_out = (torch.randn(E, H, d, generator=random, dtype=dtype) * H**-0.5).requires_grad_()
    return x_Td, gates_TK, w_in, w_out


def choices(pattern: str, T: int, E: int, K: int) -> Tensor:
    random = torch.Generator().manual_seed(7)
    if pattern == "collapse":
        return torch.arange(K).repeat(T, 1)
    if pattern == "last experts only":
        return torch.arange(E - K, E).flip(0).repeat(T, 1)
    if pattern == "every other expert":
        return 2 * torch.rand(T, E // 2, generator=random).argsort(-1)[:, :K]
    return torch.rand(T, E, generator=random).argsort(-1)[:, :K]


@needs_grouped_product
@pytest.mark.parametrize("pattern", ["random", "collapse", "last experts only", "every other expert"])
@pytest.mark.parametrize(
    ("T", "E", "K", "d", "H"),
    [(40, 8, 2, 16, 12), (1, 4, 2, 4, 4), (33, 4, 1, 8, 20), (16, 12, 5, 4, 8), (0, 4, 2, 8, 4)],
)
def test_the_grouped_product_equals_the_loop_in_output_and_every_gradient(pattern, T, E, K, d, H):
    chosen_TK = choices(pattern, T, E, K)
    leaves = inputs(T, E, d, H, chosen_TK)
    x_Td, gates_TK, w_in, w_out = leaves
    load_E = torch.bincount(chosen_TK.flatten(), minlength=E)
    weight_Td = torch.randn(T, d, generator=torch.Generator().manual_seed(3))
    fast = mix(x_Td, chosen_TK, gates_TK, w_in, w_out)
    fast_gradients = torch.autograd.grad((fast * weight_Td).sum(), leaves)
    slow = mix_by_loop(x_Td, chosen_TK, gates_TK, w_in, w_out)
    slow_gradients = torch.autograd.grad((slow * weight_Td).sum(), leaves)
    assert fast.shape == (T, d)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    for leaf, ours, reference in zip(leaves, fast_gradients, slow_gradients, strict=True):
        assert ours.shape == leaf.shape
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    for expert in (load_E == 0).nonzero().flatten().tolist():
        assert not fast_gradients[2][expert].any(), "an expert without a token has no gradient"
        assert not fast_gradients[3][expert].any(), "an expert without a token has no gradient"


@needs_grouped_product
def test_the_same_input_gives_the_same_bits():
    chosen_TK = choices("random", 64, 8, 3)
    x_Td, gates_TK, w_in, w_out = leaves = inputs(64, 8, 16, 16, chosen_TK)
    results = []
    for _ in range(3):
        out = mix(x_Td, chosen_TK, gates_TK, w_in, w_out)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            assert torch.equal(one, other)


def test_without_a_grouped_product_the_loop_takes_its_place(monkeypatch):
    chosen_TK = choices("random", 20, 4, 2)
    x_Td, gates_TK, w_in, w_out = inputs(20, 4, 8, 8, chosen_TK)
    monkeypatch.setattr(experts, "grouped_mm_works", lambda device_type: False)
    out = mix(x_Td, chosen_TK, gates_TK, w_in, w_out)
    assert torch.equal(out, mix_by_loop(x_Td, chosen_TK, gates_TK, w_in, w_out))


@pytest.mark.parametrize("grouped", [pytest.param(True, marks=needs_grouped_product), False])
def test_padding_of_expert_choice_changes_no_output_and_no_gradient(grouped, monkeypatch):
    """A token may have any number of experts; the rest is padding: a repeated expert with gate 0."""
    if not grouped:
        monkeypatch.setattr(experts, "grouped_mm_works", lambda device_type: False)
    knobs = Knobs(router="expert_choice", top_k=2)
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    routing = route(logits, torch.zeros(6), knobs)
    assert not routing.valid_TK.all()
    x_Td, _, w_in, w_out = inputs(20, 6, 8, 8, routing.chosen_TK)
    gates_TK = routing.gates_TK.requires_grad_()
    leaves = (x_Td, gates_TK, w_in, w_out)
    padded = mix(x_Td, routing.chosen_TK, gates_TK, w_in, w_out)
    without = torch.zeros(20, 8)
    for token in range(20):
        mine = routing.valid_TK[token]
        alone = mix_by_loop(
            x_Td[token : token + 1],
            routing.chosen_TK[token : token + 1, mine],
            gates_TK[token : token + 1, mine],
            w_in,
            w_out,
        )
        without = without.index_add(0, torch.tensor([token]), alone)
    torch.testing.assert_close(padded, without, rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(out.cos().sum(), leaves) for out in (padded, without))
    for leaf, one, other in zip(leaves, ours, theirs, strict=True):
        valid = routing.valid_TK if leaf is gates_TK else torch.ones_like(leaf, dtype=torch.bool)
        torch.testing.assert_close(one[valid], other[valid], rtol=1e-4, atol=1e-5)


@needs_grouped_product
def test_padding_is_not_computed(monkeypatch):
    routing = route(torch.randn(20, 6), torch.zeros(6), Knobs(router="expert_choice", top_k=2))
    x_Td, _, w_in, w_out = inputs(20, 6, 8, 8, routing.chosen_TK)
    rows, product = [], torch.nn.functional.grouped_mm
    monkeypatch.setattr(
        torch.nn.functional, "grouped_mm", lambda a, b, offs: (rows.append(len(a)), product(a, b, offs=offs))[1]
    )
    mix(x_Td, routing.chosen_TK, routing.gates_TK, w_in, w_out, routing.valid_TK)
    assert rows == [int(routing.valid_TK.sum())] * 2
    assert rows[0] < routing.valid_TK.numel()


@needs_grouped_product
@pytest.mark.parametrize("pattern", ["random", "collapse"])
def test_the_grouped_product_is_as_exact_as_float32_allows(pattern):
    """Against the plain loop in float64."""
    chosen_TK = choices(pattern, 200, 8, 2)
    leaves = inputs(200, 8, 32, 32, chosen_TK)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    results = []
    for way, given in ((mix, leaves), (mix_by_loop, exact)):
        x_Td, gates_TK, *weights = given
        out = way(x_Td, chosen_TK, gates_TK, *weights)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), given)))
    for ours, reference in zip(*results, strict=True):
        assert float((ours - reference).abs().max() / reference.abs().max()) < 2e-6


@needs_grouped_product
def test_a_graph_that_is_kept_can_be_gone_through_again():
    """As the probe of interference does: the first pass lets go of what it used."""
    chosen_TK = choices("random", 64, 8, 3)
    x_Td, gates_TK, w_in, w_out = leaves = inputs(64, 8, 16, 16, chosen_TK)
    loss = mix(x_Td, chosen_TK, gates_TK, w_in, w_out).cos().sum()
    passes = [torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(3)]
    for again in passes[1:]:
        for one, other in zip(passes[0], again, strict=True):
            assert torch.equal(one, other)


@needs_grouped_product
def test_data_that_need_no_gradient_cost_none():
    chosen_TK = choices("random", 20, 4, 2)
    x_Td, gates_TK, w_in, w_out = inputs(20, 4, 8, 8, chosen_TK)
    rest = (gates_TK, w_in, w_out)
    asked = torch.autograd.grad(mix(x_Td, chosen_TK, *rest).cos().sum(), rest)
    spared = torch.autograd.grad(mix(x_Td.detach(), chosen_TK, *rest).cos().sum(), rest)
    for one, other in zip(asked, spared, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("grouped", [pytest.param(True, marks=needs_grouped_product), False])
def test_twins_are_computed_by_their_own_experts(grouped, monkeypatch):
    if not grouped:
        monkeypatch.setattr(experts, "grouped_mm_works", lambda device_type: False)
    chosen = [choices(pattern, 24, 6, 2) for pattern in ("random", "collapse", "last experts only")]
    parts = [inputs(24, 6, 8, 12, chosen_TK) for chosen_TK in chosen]
    parts = [tuple(leaf.detach() * (twin + 1) for leaf in part) for twin, part in enumerate(parts)]
    x, gates, w_in, w_out = (torch.stack(column).requires_grad_() for column in zip(*parts, strict=True))
    out = experts.mix(x, torch.stack(chosen), gates, w_in, w_out)
    gradients = torch.autograd.grad(out.cos().sum(), (x, gates, w_in, w_out))
    for twin, part in enumerate(parts):
        leaves = [leaf.requires_grad_() for leaf in part]
        own = mix(leaves[0], chosen[twin], *leaves[1:])
        assert torch.equal(out[twin], own)
        for ours, reference in zip(gradients, torch.autograd.grad(own.cos().sum(), leaves), strict=True):
            assert torch.equal(ours[twin], reference)


# --- the loop itself -------------------------------------------------------------------------------------------------


def spoken_mix(x_Td, chosen_TK, gates_TK, w_in, w_out) -> Tensor:
    """One token after another, one of its experts after another: (silu(x W_gate) * (x W_up)) W_out, times the gate."""
    rows = []
    for token in range(len(x_Td)):
        total = torch.zeros(x_Td.shape[1], dtype=x_Td.dtype)
        for slot, expert in enumerate(chosen_TK[token].tolist()):
            half = w_in.shape[2] // 2
            gate, up = x_Td[token] @ w_in[expert, :, :half], x_Td[token] @ w_in[expert, :, half:]
            silu = gate / (1 + torch.exp(-gate))
            total = total + gates_TK[token, slot] * ((silu * up) @ w_out[expert])
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("pattern", ["random", "collapse", "every other expert"])
def test_the_loop_is_the_rule_spoken_aloud_in_output_and_every_gradient(pattern):
    chosen_TK = choices(pattern, 9, 6, 3)
    leaves = x_Td, gates_TK, w_in, w_out = inputs(9, 6, 4, 4, chosen_TK, torch.float64)
    loop, spoken = mix_by_loop(x_Td, chosen_TK, gates_TK, w_in, w_out), spoken_mix(*leaves[:1], chosen_TK, *leaves[1:])
    torch.testing.assert_close(loop, spoken, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(out.cos().sum(), leaves) for out in (loop, spoken))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_gradients_of_the_loop_are_those_of_finite_differences():
    chosen_TK = torch.tensor([[0, 2], [2, 1], [2, 0]])
    x_Td, gates_TK, w_in, w_out = inputs(3, 4, 2, 2, chosen_TK, torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, gates, w_in, w_out: mix_by_loop(x, chosen_TK, gates, w_in, w_out), (x_Td, gates_TK, w_in, w_out)
    )


# --- in bfloat16 -----------------------------------------------------------------------------------------------------


@needs_grouped_product
def test_experts_in_bfloat16_route_alike_and_compute_nearly_the_same():
    recipe = Recipe(device="cpu", num_experts=8, d_model=16, d_expert=16, tokens_per_step=128)
    torch.manual_seed(0)
    fine, coarse = MoELayer(recipe), MoELayer(replace(recipe, precision="bfloat16"))
    coarse.load_state_dict(fine.state_dict())
    x_Td, bias_E = torch.randn(128, 16, requires_grad=True), torch.zeros(8)
    results = []
    for layer in (fine, coarse):
        out_Td, routing, _ = layer_of(layer, x_Td, bias_E, Knobs())
        weights = list(layer.parameters())
        results.append((routing, out_Td.detach(), *torch.autograd.grad(out_Td.sin().sum(), [x_Td, *weights])))
    (routing, *exact), (rounded_routing, *rounded) = results
    assert torch.equal(routing.chosen_TK, rounded_routing.chosen_TK)
    assert torch.equal(routing.gates_TK, rounded_routing.gates_TK)  # the router computes in float32
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.float32
        error = (one - other).abs().max() / one.abs().max()
        assert 0 < float(error) < 0.02


def test_bfloat16_needs_widths_in_eights():
    Recipe(d_model=36)
    with pytest.raises(SettingsError, match=r"d_model=36 is not a multiple of 8, .* bfloat16 needs. Try 32 or 40\."):
        Recipe(d_model=36, precision="bfloat16")
