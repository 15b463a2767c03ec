"""The steps of the training forward between its matrix products, each in few passes over memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmpg.language.models.decoder_parts import Norm

_WIDE = 32
"""Numbers of a head from which on its products need no help to be fast."""


def product_dtype(x: Tensor) -> torch.dtype:
    """What matrices are multiplied in: autocast's precision where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def normed(x: Tensor, norm: Norm | None) -> Tensor:
    """Its norm over the last dimension, RMS in float32; x itself where there is none."""
    if norm is None:
        return x
    module = norm.module
    if isinstance(module, nn.LayerNorm):
        shape = module.normalized_shape
        return F.layer_norm(x, shape, module.weight, module.bias, module.eps)
    return _RMSNorm.apply(x, norm.weight, norm.eps)


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


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up.

    Recomputes silu(gate) in backward instead of saving it; saving it would add one eighth to a
    layer's activation memory.
    """
    return _GatedSiLU.apply(gate, up)


class _GatedSiLU(torch.autograd.Function):
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

    cos, sin [N, numbers of a head that are rotated], each angle twice, as models of transformers
    give them; heads: of queries, and of keys; scaling: of queries, for the softmax.
    """

    def __init__(
        self, cos_NE: Tensor, sin_NE: Tensor, heads: tuple[int, int], scaling: float
    ) -> None:
        half = cos_NE.shape[1] // 2
        turn_NE = torch.complex(cos_NE[:, :half].float(), sin_NE[:, :half].float())
        self._queries = _for_heads(turn_NE * scaling, heads[0])
        self._keys = _for_heads(turn_NE, heads[1])
        self._rotated, self._scaling = 2 * half, scaling

    def __call__(self, q_NHE: Tensor, k_NKE: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, rotated and scaled, and keys, rotated.

        The two numbers of a pair, half a head apart before, then lie side by side, an order that
        products of queries and keys do not depend on. Models that rotate a part of each head
        rotate its first numbers.
        """
        if self._rotated == q_NHE.shape[-1]:
            return _Rotated.apply(q_NHE, self._queries), _Rotated.apply(k_NKE, self._keys)
        q, q_rest = q_NHE.tensor_split([self._rotated], -1)
        k, k_rest = k_NKE.tensor_split([self._rotated], -1)
        queries = torch.cat([_Rotated.apply(q, self._queries), q_rest * self._scaling], -1)
        return queries, torch.cat([_Rotated.apply(k, self._keys), k_rest], -1)


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
