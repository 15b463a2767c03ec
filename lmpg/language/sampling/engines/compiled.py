"""Kernels of a decode step: what it does between its matrix products, as few functions of tensors.

On a GPU each operation of torch is a kernel that takes about as long to start as to run, for a few
rows; compiled, each of these functions is one. N rows, H heads of queries, K of keys and values, E
numbers of a head, X = (H + K + K) · E.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from lmpg.language.models.architectures import ACTIVATIONS
from lmpg.language.sampling.engines.weights import NormWeights

logger = logging.getLogger(__name__)


def norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:
    """RMS norm over the last dimension, or with a bias layer norm, of float32 x, or without a
    weight x; in `dtype`."""
    if weight is None:
        return x.to(dtype)
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight, bias, eps).to(dtype)
    return F.rms_norm(x, weight.shape, weight, eps).to(dtype)


def add_norm(
    stream_ND: Tensor,
    x_ND: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The float32 stream with x added, and its norm in `dtype`."""
    stream_ND = stream_ND + x_ND
    return stream_ND, norm(stream_ND, weight, bias, eps, dtype)


def rotate(
    x_NX: Tensor,
    heads: tuple[int, int],
    rotations_NE: Tensor | None,
    weight_HE: Tensor | None,
    eps: float,
    joined: bool,
) -> tuple[Tensor, Tensor]:
    """Queries [N, H, E], and keys then values [N, K + K, E]: normed and rotated where the model
    does, computed in float32.

    rotations_NE: cosine and sine for each pair of neighbours that is rotated, the first of a head.
    joined: all heads of queries are normed as one, and all of keys.
    """
    num_heads, kv_heads = heads
    x = x_NX.float().unflatten(1, (num_heads + 2 * kv_heads, -1))
    turned, values = x.split([num_heads + kv_heads, kv_heads], 1)
    if weight_HE is not None and not joined:
        turned = F.rms_norm(turned, turned.shape[-1:], None, eps) * weight_HE
    elif weight_HE is not None:
        parts = [F.rms_norm(y, y.shape[1:], None, eps) for y in turned.split(list(heads), 1)]
        turned = torch.cat(parts, 1) * weight_HE
    if rotations_NE is not None:
        rest = turned[..., rotations_NE.shape[1] :]
        cos, sin = rotations_NE[:, None].unflatten(2, (-1, 2)).unbind(3)
        one, other = turned[..., : rotations_NE.shape[1]].unflatten(2, (-1, 2)).unbind(3)
        pair = one * cos - other * sin, one * sin + other * cos
        turned = torch.stack(pair, 3).flatten(2)
        if rest.shape[-1]:
            turned = torch.cat([turned, rest], 2)
    query, key = turned.split([num_heads, kv_heads], 1)
    return query.to(x_NX.dtype), torch.cat([key, values], 1).to(x_NX.dtype)


def gate(x: Tensor, up: Tensor | None, activation: str) -> Tensor:
    """The activation of x, times `up` where there is one."""
    inner = ACTIVATIONS[activation](x)
    return inner if up is None else inner * up


@dataclass(frozen=True)
class Kernels:
    """The functions above, as they stand or compiled."""

    norm: Callable[..., Tensor] = norm
    add_norm: Callable[..., tuple[Tensor, Tensor]] = add_norm
    rotate: Callable[..., tuple[Tensor, Tensor]] = rotate
    gate: Callable[..., Tensor] = gate


def norm_arguments(weights: NormWeights | None, dtype: torch.dtype) -> tuple:
    """A norm as the arguments that the functions take: a compiler looks at tensors alone."""
    if weights is None:
        return None, None, 0.0, dtype
    return weights.weight, weights.bias, weights.eps, dtype


class Compiled:
    """A function compiled, from its second number of rows on for any; where that fails, itself."""

    def __init__(self, function: Callable):
        self._plain = function
        self._compiled: Callable | None = None
        self.failed = False

    def __call__(self, *arguments):
        """What the function gives."""
        if self.failed:
            return self._plain(*arguments)
        try:
            self._compiled = self._compiled or torch.compile(self._plain)
            return self._compiled(*arguments)
        except Exception as error:  # of whatever kind: compilers fail in many ways
            name, reason = self._plain.__name__, str(error).strip().split("\n")[0]
            logger.warning("sampling without compiling `%s`, because %s", name, reason)
            self.failed = True
            return self._plain(*arguments)


@cache
def compiled_kernels() -> Kernels:
    """The functions compiled, one time for all decoders."""
    return Kernels(*(Compiled(f) for f in (norm, add_norm, rotate, gate)))


def kernels_for(device: torch.device) -> Kernels:
    """Compiled on a GPU whose compiler (Triton) is installed."""
    if device.type == "cuda" and find_spec("triton") is not None:
        return compiled_kernels()
    return Kernels()
