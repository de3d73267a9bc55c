"""Is a run to the bit what it is by itself, whoever is trained beside it? Found out by trying, once per device.

A run by itself is a stack of one, so it and a twin make the same calls. What is left is whether a library rounds the
members of a batch alike however many there are. MKL does on every processor tried; where one does not (another library,
a GPU), twins are the runs they are alone to rounding only, and whoever promises more asks here first.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from moeviz.config import Knobs, Recipe
from moeviz.engine import Engine, Twins

STACKS = (2, 3, 4, 8)
# Tokens, inputs, outputs: of routers, attention, shared experts and heads, small and odd ones among them.
PRODUCTS = ((8, 4, 3), (34, 12, 6), (96, 20, 12), (256, 16, 8), (512, 64, 64), (1024, 32, 16), (1024, 48, 256))
STEPS = 2
TOY = Recipe(num_experts=8, d_model=16, d_expert=12, tokens_per_step=128, sequence_length=16)
TOYS = (TOY, replace(TOY, task="text", num_layers=2, shared_experts=1, mtp_depth=1))
TEXT = b"The quick brown fox jumps over the lazy dog. " * 80
KNOBS = [Knobs(), Knobs(bias_rule="sign", u=0.05), Knobs(gating="softmax", alpha=0.1)]


@cache
def stacks_exactly(device: str) -> bool:
    """Whether a run's numbers are the same to the bit in a stack of any size on this device."""
    # Runs first: an engine has the processor compute with one thread, as it does in training.
    return all(trains_alike(replace(recipe, device=device)) for recipe in TOYS) and all(
        multiplies_alike(*shape, device) for shape in PRODUCTS
    )


def multiplies_alike(tokens: int, inputs: int, outputs: int, device: str) -> bool:
    """Whether a product of states and weights, and both its gradients, round alike in stacks of all sizes."""
    draw = torch.Generator().manual_seed(0)
    sizes = ((tokens, inputs), (outputs, inputs), (tokens, outputs))
    operands = [torch.randn(max(STACKS), *size, generator=draw).to(device) for size in sizes]
    alone = [_product([part[run : run + 1] for part in operands]) for run in range(max(STACKS))]
    return all(
        torch.equal(ours[run], own[0])
        for runs in STACKS
        for ours, *owns in zip(_product([part[:runs] for part in operands]), *alone[:runs], strict=True)
        for run, own in enumerate(owns)
    )


def _product(operands: list[Tensor]) -> list[Tensor]:
    """As the model computes it: the product, and what the gradient of it makes of both operands."""
    x_RTd, w_Rnd, grad_RTn = operands
    leaves = [x_RTd.detach().requires_grad_(), w_Rnd.detach().requires_grad_()]
    out_RTn = torch.bmm(leaves[0], leaves[1].mT)
    return [out_RTn, *torch.autograd.grad(out_RTn, leaves, grad_RTn)]


def trains_alike(recipe: Recipe) -> bool:
    """Whether a few steps leave every twin with the very weights, moments and bias of the run alone."""
    text = TEXT if recipe.task == "text" else None
    twins = Twins(recipe, KNOBS, text)
    engines = [Engine(recipe, knobs, text) for knobs in KNOBS]
    for _ in range(STEPS):
        twins.step(KNOBS)
        for engine, knobs in zip(engines, KNOBS, strict=True):
            engine.step(knobs)
    states = zip(twins.states(), (engine.state() for engine in engines), strict=True)
    return all(torch.equal(value, alone[name]) for own, alone in states for name, value in own.items())
