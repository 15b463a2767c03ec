"""Multi-layer perceptrons whose parameters are one vector.

Small networks cost what their operations' overhead costs. One tensor of parameters makes one node
of the graph and one step of the optimizer out of a dozen; and the textbook's methods think of
parameters as a vector θ anyway.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Activation = Literal["tanh", "relu"]
Layer = tuple[Tensor, Tensor]


class FlatMLP(nn.Module):
    """Linear layers with an activation between them; `flat` holds weights and biases in order.

    sizes: features, units of each hidden layer, outputs. twice: whether the result is to be
    differentiated twice (Hessians, Fisher-vector products), at the price of speed.
    """

    def __init__(self, sizes: tuple[int, ...], activation: Activation) -> None:
        super().__init__()
        self.sizes, self.activation = sizes, activation
        self.shapes = [(out, inputs) for inputs, out in itertools.pairwise(sizes)]
        self.flat = nn.Parameter(torch.zeros(sum(m * n + m for m, n in self.shapes)))
        self.twice = False

    def layers(self, flat: Tensor | None = None) -> list[Layer]:
        """(weight [out, in], bias [out]) of each layer: views of `flat`, or of a vector like it."""
        flat, found, start = self.flat if flat is None else flat, [], 0
        for out, inputs in self.shapes:
            end = start + out * inputs
            found.append((flat[start:end].view(out, inputs), flat[end : end + out]))
            start = end + out
        return found

    @torch.no_grad()
    def initialise(self, last_gain: float, generator: torch.Generator) -> None:
        """Orthogonal weights of gain √2, in the last layer `last_gain`; no biases."""
        *hidden, last = self.layers()
        for weight, bias in (*hidden, last):
            gain = last_gain if weight is last[0] else math.sqrt(2)
            nn.init.orthogonal_(weight, gain, generator=generator)
            bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., out] of features [..., in]."""
        plain = self.twice or x.requires_grad or x.device.type != "cpu"
        if plain or x.dtype != torch.float32:
            return self._by_autograd(x)
        rows = x.reshape(-1, x.shape[-1])
        return _Applied.apply(rows, self.flat, self).view(*x.shape[:-1], self.sizes[-1])

    def _by_autograd(self, x: Tensor) -> Tensor:
        activate = torch.tanh if self.activation == "tanh" else torch.relu
        *hidden, (weight, bias) = self.layers()
        for w, b in hidden:
            x = activate(nn.functional.linear(x, w, b))
        return nn.functional.linear(x, weight, bias)

    def outputs(self, features: np.ndarray) -> np.ndarray:
        """The same in numpy, whose small products cost a tenth of torch's."""
        *hidden, (weight, bias) = self._arrays()
        x = features
        for w, b in hidden:
            x = x @ w.T
            x += b
            _activate(self.activation, x)
        return x @ weight.T + bias

    def _arrays(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The layers as arrays that share their memory, kept for as long as it is the same."""
        data = self.flat.data_ptr()
        if getattr(self, "_kept", (None,))[0] != data:
            layers = self.layers(self.flat.detach())
            self._kept = (data, [(w.numpy(), b.numpy()) for w, b in layers])
        return self._kept[1]


def _activate(activation: Activation, x: np.ndarray) -> None:
    # numpy's tanh takes a tenth of the time of torch's
    np.tanh(x, out=x) if activation == "tanh" else np.maximum(x, 0, out=x)


class _Applied(torch.autograd.Function):
    """Forward and backward by hand: one node, and activations in place."""

    @staticmethod
    def forward(ctx, x, flat, network):
        ctx.save_for_backward(flat)  # so that autograd notices a change before backward
        ctx.network, ctx.states = network, [x]
        *hidden, (weight, bias) = network.layers(flat.detach())
        for w, b in hidden:
            x = torch.addmm(b, x, w.T)
            _activate(network.activation, x.numpy())
            ctx.states.append(x)
        return torch.addmm(bias, x, weight.T)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (flat,) = ctx.saved_tensors
        found = torch.empty_like(flat)
        slots, layers = ctx.network.layers(found), ctx.network.layers(flat)
        for i, (weight, _) in reversed(list(enumerate(layers))):
            x, (weight_grad, bias_grad) = ctx.states[i], slots[i]
            torch.mm(grad.T, x, out=weight_grad)
            torch.sum(grad, 0, out=bias_grad)
            if i:
                grad = _SLOPES[ctx.network.activation](grad @ weight, x)
        return None, found, None


# (gradient of the activation's outputs, these outputs) → that of its inputs
_SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": torch.ops.aten.tanh_backward,
    "relu": lambda grad, outputs: torch.where(outputs > 0, grad, 0.0),
}
