"""The network as one vector: the same numbers and gradients as torch's own layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lmpg.gym.networks.flat_mlp import FlatMLP

MODULES = {"tanh": nn.Tanh, "relu": nn.ReLU}


def pair(sizes, activation):
    """A FlatMLP and a torch network with the same weights."""
    flat = FlatMLP(sizes, activation)
    flat.initialise(1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        flat.flat.add_(0.1 * torch.randn(flat.flat.shape, generator=torch.Generator()))
    modules = []
    for weight, bias in flat.layers():
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
        modules += [linear, MODULES[activation]()]
    return flat, nn.Sequential(*modules[:-1])


@pytest.mark.parametrize("activation", MODULES)
@pytest.mark.parametrize("sizes", [(4, 2), (4, 8, 3), (5, 16, 8, 1)])
@pytest.mark.parametrize("twice", [False, True])
def test_outputs_and_gradients_are_those_of_torchs_layers(sizes, activation, twice):
    mine, theirs = pair(sizes, activation)
    mine.twice = twice
    x = torch.randn(3, 7, sizes[0])
    weights = torch.randn(3, 7, sizes[-1])
    (mine(x) * weights).sum().backward()
    (theirs(x) * weights).sum().backward()
    torch.testing.assert_close(mine(x), theirs(x), atol=1e-6, rtol=1e-5)
    expected = torch.cat([p.grad.flatten() for p in theirs.parameters()])
    torch.testing.assert_close(mine.flat.grad, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(
        mine.outputs(x[0].numpy()), theirs(x[0]).detach().numpy(), atol=1e-6, rtol=1e-5
    )


def test_a_hessian_vector_product_needs_and_has_the_second_derivative():
    mine, theirs = pair((3, 6, 1), "tanh")
    x = torch.randn(9, 3)
    vector = torch.randn(mine.flat.shape)

    def product(network, parameters, v):
        grads = torch.autograd.grad(network(x).square().sum(), parameters, create_graph=True)
        flat = torch.cat([g.flatten() for g in grads])
        return torch.cat([g.flatten() for g in torch.autograd.grad(flat @ v, parameters)])

    mine.twice = True
    expected = product(theirs, list(theirs.parameters()), vector)
    torch.testing.assert_close(product(mine, [mine.flat], vector), expected, atol=1e-5, rtol=1e-4)
    mine.twice = False
    with pytest.raises(RuntimeError, match="differentiated"):
        product(mine, [mine.flat], vector)


def test_acting_reads_the_weights_as_they_are_now():
    mine, _ = pair((2, 3), "tanh")
    x = np.ones((1, 2), dtype=np.float32)
    before = mine.outputs(x)
    with torch.no_grad():
        mine.flat.mul_(2)
    np.testing.assert_allclose(mine.outputs(x), 2 * before, rtol=1e-6)
    mine.flat = nn.Parameter(mine.flat.detach() * 0)
    assert not mine.outputs(x).any()
