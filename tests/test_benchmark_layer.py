"""The layer that `make bench` compares with others: the project's own, with the weights that the others have."""

import torch

from benchmarks.cells import Cell, ours, weights_of
from benchmarks.measure import backward


def test_a_layer_that_was_only_looked_at_still_has_the_gradients_of_its_weights():
    cell = Cell(T=16, d=4, E=4, K=2, H=4)
    weights = weights_of(cell)
    with torch.no_grad():
        ours(weights, weights.x_Td, cell)
    gradients = backward(lambda: ours(weights, weights.x_Td, cell), weights.leaves, weights.grad_Td)()
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in weights.leaves]
    assert all(gradient.abs().max() > 0 for gradient in gradients)
