"""Linear layers of an engine: weights laid out once, applied many times."""

from __future__ import annotations

import torch
from torch import Tensor

from lmpg.language.models.architectures import ACTIVATIONS

_ONEDNN = {
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
}
"""oneDNN's name and algorithm of each activation."""
_PACKED_FROM = 2**15
"""Elements of a weight from which oneDNN's product is worth its longer way to it."""


class DenseLinear:
    """x W^T + b for x [N, in], with what follows it in a layer."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self._transposed, self._bias = weight.contiguous().T, bias

    @property
    def tensors(self) -> list[Tensor | None]:
        """What it multiplies with and adds, as it lies in memory."""
        return [self._transposed, self._bias]

    def __call__(self, x: Tensor) -> Tensor:
        """[N, out]."""
        if self._bias is None:
            return torch.mm(x, self._transposed)
        return torch.addmm(self._bias, x, self._transposed)

    def activated(self, x: Tensor, activation: str) -> Tensor:
        """activation(x W^T + b), [N, out]."""
        return ACTIVATIONS[activation](self(x))

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The result times `factor` [N, out]."""
        return self(x).mul_(factor)

    def added_to(self, stream: Tensor, x: Tensor) -> Tensor:
        """`stream` [N, out], in its own precision, plus the result."""
        if self._bias is None and stream.dtype == x.dtype:
            return torch.addmm(stream, x, self._transposed)
        return stream + self(x)


class PackedLinear:
    """The same on a CPU, with the weight in oneDNN's own layout (up to twice as fast, more so for
    few rows); what follows is done before the result leaves the processor's cache.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias
        self._apply = torch.ops.mkldnn._linear_pointwise.default
        self._combine = torch.ops.mkldnn._linear_pointwise.binary

    @property
    def tensors(self) -> list[Tensor | None]:
        """What it multiplies with and adds, as it lies in memory."""
        return [self._weight, self._bias]

    def __call__(self, x: Tensor) -> Tensor:
        """[N, out]."""
        return self._apply(x, self._weight, self._bias, "none", [], "")

    def activated(self, x: Tensor, activation: str) -> Tensor:
        """activation(x W^T + b), [N, out]."""
        name, algorithm = _ONEDNN[activation]
        return self._apply(x, self._weight, self._bias, name, [], algorithm)

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The result times `factor` [N, out]."""
        return self._combine(x, factor, self._weight, self._bias, "mul")

    def added_to(self, stream: Tensor, x: Tensor) -> Tensor:
        """`stream` [N, out], in its own precision, plus the result."""
        if stream.dtype == x.dtype:
            return self._combine(x, stream, self._weight, self._bias, "add")
        return stream + self(x)


def linear(weight: Tensor, bias: Tensor | None) -> DenseLinear | PackedLinear:
    """The fastest there is for a weight [out, in] on its device and in its precision."""
    return (PackedLinear if _can_be_packed(weight) else DenseLinear)(weight, bias)


def _can_be_packed(weight: Tensor) -> bool:
    operators = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.numel() < _PACKED_FROM or "AVX" not in torch.backends.cpu.get_cpu_capability():
        return False
    if not (hasattr(operators, "_linear_pointwise") and torch.backends.mkldnn.enabled):
        return False
    if weight.dtype == torch.bfloat16:
        return operators._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32
