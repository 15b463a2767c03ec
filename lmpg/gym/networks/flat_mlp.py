"""Multi-layer perceptrons whose parameters are one vector.

Small networks cost what their operations' overhead costs. One tensor of parameters makes one node
of the graph and one step of the optimizer out of a dozen; and the textbook's methods think of
parameters as a vector θ anyway.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Activation = Literal["tanh", "relu"]


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
        self._kept: tuple[int, list[tuple[np.ndarray, np.ndarray]]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies look at their own memory, not at this one's."""
        return {**self.__dict__, "_kept": None}

    def layers(self, flat: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
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
        if not self.suits_numpy(x):
            return self.last(self.hidden(x))
        rows = x.reshape(-1, x.shape[-1])
        return _Applied.apply(rows, self.flat, self).view(*x.shape[:-1], self.sizes[-1])

    def suits_numpy(self, x: Tensor) -> bool:
        """Whether the passes in numpy serve for `x`: float32 on a CPU, differentiated at most once,
        and not with respect to `x`."""
        plain = not (self.twice or x.requires_grad) and x.device.type == "cpu"
        return plain and x.dtype == torch.float32

    def hidden(self, x: Tensor) -> Tensor:
        """What the last layer reads, [..., units]; for those that share it."""
        activate = torch.tanh if self.activation == "tanh" else torch.relu
        for w, b in self.layers()[:-1]:
            x = activate(nn.functional.linear(x, w, b))
        return x

    def last(self, x: Tensor) -> Tensor:
        """The last layer, of what `hidden` gave."""
        return nn.functional.linear(x, *self.layers()[-1])

    def outputs(self, features: np.ndarray) -> np.ndarray:
        """Outputs [N, out] in numpy, whose small products cost a tenth of torch's."""
        return self.forward_in_numpy(features)[0]

    def forward_in_numpy(self, features: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Outputs [N, out] of features [N, in], and the inputs of each layer for the way back."""
        *hidden, (weight, bias) = self._arrays()
        states = [features]
        for w, b in hidden:
            x = np.dot(states[-1], w.T)
            x += b
            _activate(self.activation, x)
            states.append(x)
        found = np.dot(states[-1], weight.T)
        found += bias
        return found, states

    def backward_in_numpy(
        self,
        by_output: np.ndarray,
        states: list[np.ndarray],
        to_features: bool = False,
        by_hidden: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """dL/doutputs ↦ dL/dflat and, where `to_features`, dL/dfeatures.

        states: the layers' inputs, from `forward_in_numpy`. by_hidden: added to the gradient at the
        last hidden layer, for networks that read it too.
        """
        grad, found = by_output, np.empty(self.flat.shape[0], dtype=np.float32)
        slots, ones = self._cut(found), np.ones(len(by_output), dtype=np.float32)
        for i, (weight, _) in reversed(list(enumerate(self._arrays()))):
            x, (weight_grad, bias_grad) = states[i], slots[i]
            np.dot(grad.T, x, out=weight_grad)
            np.dot(ones, grad, out=bias_grad)
            if not (i or to_features):
                return found, None
            grad = np.dot(grad, weight)
            if by_hidden is not None and i == len(slots) - 1:
                grad += by_hidden
            if i:
                _SLOPES[self.activation](grad, x)
        return found, grad

    def _arrays(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The layers as arrays that share their memory, kept for as long as it is the same."""
        flat = self.flat
        place = flat.data_ptr()
        if self._kept is None or self._kept[0] != place:
            self._kept = (place, self._cut(flat.detach().numpy()))
        return self._kept[1]

    def _cut(self, flat: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Views of a vector like `flat`, as `layers` has them."""
        found, start = [], 0
        for out, inputs in self.shapes:
            end = start + out * inputs
            found.append((flat[start:end].reshape(out, inputs), flat[end : end + out]))
            start = end + out
        return found


def _activate(activation: Activation, x: np.ndarray) -> None:
    # numpy's tanh takes a tenth of the time of torch's
    np.tanh(x, out=x) if activation == "tanh" else np.maximum(x, 0, out=x)


class _Applied(torch.autograd.Function):
    """Forward and backward by hand: one node, and activations in place."""

    @staticmethod
    def forward(ctx, x, flat, network):
        ctx.save_for_backward(flat)  # so that autograd notices a change before backward
        found, ctx.states = network.forward_in_numpy(x.numpy())
        ctx.network = network
        return torch.from_numpy(found)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        ctx.saved_tensors  # noqa: B018
        found, _ = ctx.network.backward_in_numpy(grad.numpy(), ctx.states)
        return None, torch.from_numpy(found), None


def _tanh_slope(grad: np.ndarray, outputs: np.ndarray) -> None:
    slope = outputs * outputs
    np.subtract(1, slope, out=slope)
    grad *= slope


def _relu_slope(grad: np.ndarray, outputs: np.ndarray) -> None:
    grad *= outputs > 0


# the gradient of an activation's outputs, given these, becomes that of its inputs
_SLOPES: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "tanh": _tanh_slope,
    "relu": _relu_slope,
}
