"""The steps of a transformer over a ragged batch, each in as few passes over memory as it takes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_WIDE = 32
"""Numbers of a head from which on its products need no help to be fast."""


def product_dtype(x: Tensor) -> torch.dtype:
    """What matrices are multiplied in: autocast's precision where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """`norm`, an RMSNorm of transformers, of x [..., D]."""
    weight: Any = norm.weight
    return _RMSNorm.apply(x, weight, norm.variance_epsilon)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        x = x.float()
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, inverse = ctx.saved_tensors
        normal = x * inverse
        by_weight = grad * normal
        mean = (by_weight @ weight).div_(x.shape[-1])[..., None]
        grad_x = (grad * weight).sub_(normal.mul_(mean)).mul_(inverse)
        return grad_x, by_weight.flatten(0, -2).sum(0), None


def gated(mlp: Any, x: Tensor) -> Tensor:
    """What a gated MLP of transformers hands to its last layer: activation(gate(x)) · up(x)."""
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    if mlp.config.hidden_act == "silu":
        return _GatedSiLU.apply(gate, up)
    return mlp.act_fn(gate) * up


class _GatedSiLU(torch.autograd.Function):
    """Computes silu(gate) twice, as an eighth of all that a layer would keep is its result."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        by_active = grad * up
        by_gate = torch.ops.aten.silu_backward.grad_input(by_active, gate, grad_input=by_active)
        return by_gate, F.silu(gate).mul_(grad)


class Rotations:
    """Rotary positions of a batch's N tokens: a complex number for each pair of a head's numbers.

    cos, sin [N, D], each angle twice, as models of transformers give them; heads: of queries, and
    of keys; scaling: of queries, for the softmax.
    """

    def __init__(
        self, cos_ND: Tensor, sin_ND: Tensor, heads: tuple[int, int], scaling: float
    ) -> None:
        half = cos_ND.shape[1] // 2
        turn_NE = torch.complex(cos_ND[:, :half].float(), sin_ND[:, :half].float())
        self._queries = _for_heads(turn_NE * scaling, heads[0])
        self._keys = _for_heads(turn_NE, heads[1])

    def __call__(self, q_NHD: Tensor, k_NKD: Tensor) -> tuple[Tensor, Tensor]:
        """Both turned, q scaled as well; the numbers of a pair, before half a head apart, then lie
        side by side, an order that products of queries and keys do not depend on."""
        return _Rotated.apply(q_NHD, self._queries), _Rotated.apply(k_NKD, self._keys)


def _for_heads(turn_NE: Tensor, heads: int) -> Tensor:
    """[N, 1 or heads, E]: written out where heads are small, whose products on a CPU are several
    times as fast with a tensor of their own shape."""
    turn_N1E = turn_NE[:, None]
    small = turn_NE.device.type == "cpu" and turn_NE.shape[1] < _WIDE
    return turn_N1E.expand(-1, heads, -1).contiguous() if small else turn_N1E


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, turn):
        ctx.save_for_backward(turn)
        ctx.dtype = x.dtype
        one, other = x.float().chunk(2, -1)
        return torch.view_as_real(torch.complex(one, other).mul_(turn)).flatten(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (turn,) = ctx.saved_tensors
        grad = grad.to(torch.float32, memory_format=torch.contiguous_format)
        turned = torch.view_as_complex(grad.unflatten(-1, (-1, 2))) * turn.conj()
        return torch.cat([turned.real, turned.imag], -1).to(ctx.dtype), None
