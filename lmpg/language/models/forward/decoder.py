"""The training forward: any `Architecture` over a ragged batch, with gradients.

It calls the model's own linear layers and reads its own weights, and what it gives is what
transformers gives; the rest (norms, positions, attention, padding) is done in fewer passes over
memory. Below the loop over layers stand the steps between its matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmpg.language.models.decoder_parts import Architecture, DecoderLayer, Norm
from lmpg.language.models.forward.attention import Attention
from lmpg.language.models.forward.kept_weights import product
from lmpg.language.models.forward.ragged import Ragged
from lmpg.runtime.sharding import as_forward

Run = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
_WIDE = 32
"""Numbers of a head from which on its products need no help to be fast."""


def hidden_states(decoder: Architecture, ragged: Ragged, run: Run | None = None) -> Tensor:
    """The hidden states [M, D] that predict a batch's response tokens, after the last norm.

    run: what calls each layer, given the layer and its argument.
    """
    x_ND = _embedded(decoder, ragged)
    dtype = _product_dtype(x_ND)
    rotations = _rotations(decoder, ragged, x_ND)
    attentions = _attentions(decoder, ragged, dtype)

    def after(layer: DecoderLayer, x_ND: Tensor) -> Tensor:
        h_ND = _normed(x_ND, layer.attention_norm).to(dtype)
        q_NHD, k_NKD, v_NKD = _heads(decoder, layer, h_ND)
        if layer.rotary is None:
            q_NHD = q_NHD * layer.scaling
        else:
            q_NHD, k_NKD = rotations[layer.rotary, layer.scaling](q_NHD, k_NKD)
        taken_ND = attentions[layer.window](q_NHD.to(dtype), k_NKD.to(dtype), v_NKD)
        if layer is decoder.layers[-1]:  # what follows is read where a response token is predicted
            taken_ND, x_ND = (x.index_select(0, ragged.state_M) for x in (taken_ND, x_ND))
        x_ND = _added(decoder, x_ND, product(layer.out, taken_ND), layer.attention_post_norm)
        h_ND = _normed(x_ND, layer.mlp_norm).to(dtype)
        inner_ND = _inner(decoder, layer, h_ND)
        return _added(decoder, x_ND, product(layer.down, inner_ND), layer.mlp_post_norm)

    for layer in decoder.layers:
        compute = partial(after, layer) if run is None else partial(run, partial(after, layer))
        x_ND = as_forward(layer.module, compute, x_ND)
    return _normed(x_ND, decoder.last_norm)


def _embedded(decoder: Architecture, ragged: Ragged) -> Tensor:
    table = decoder.embedding
    x_ND = F.embedding(ragged.ids_N, table.weight, table.padding_idx)
    if decoder.embedding_scale != 1:
        x_ND = x_ND * decoder.embedding_scale
    if decoder.position_embedding is not None:
        x_ND = x_ND + decoder.position_embedding(ragged.positions_N)
    return x_ND


def _rotations(
    decoder: Architecture, ragged: Ragged, x_ND: Tensor
) -> dict[tuple[str, float], _Rotations]:
    """The rotations that the layers need, by (kind of rotation, scaling of the queries)."""
    kinds = {(x.rotary, x.scaling) for x in decoder.layers if x.rotary is not None}
    heads = decoder.heads, decoder.kv_heads
    return {
        (kind, scaling): _Rotations(
            decoder.rotation(kind, x_ND, ragged.positions_N), heads, scaling
        )
        for kind, scaling in kinds
    }


def _attentions(
    decoder: Architecture, ragged: Ragged, dtype: torch.dtype
) -> dict[int | None, Attention]:
    """The attentions that the layers need, by window; one as long as any text is none."""
    heads, softcap = (decoder.heads, decoder.kv_heads), decoder.attention_softcap
    whole = Attention(ragged, heads, dtype, softcap)
    windows = {layer.window for layer in decoder.layers}
    return {
        window: whole
        if window is None or window >= ragged.longest
        else Attention(ragged, heads, dtype, softcap, window)
        for window in windows
    }


def _heads(
    decoder: Architecture, layer: DecoderLayer, h_ND: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [N, H, E], keys and values [N, K, E]."""
    q, k, v = (
        [product(module, h_ND) for module in layer.qkv]
        if len(layer.qkv) == 3
        else product(layer.qkv[0], h_ND).split(decoder.qkv_sizes, 1)
    )
    if layer.q_norm is not None and layer.k_norm is not None:
        q = _normed(q.view(len(q), -1, len(layer.q_norm.module.weight)), layer.q_norm)
        k = _normed(k.view(len(k), -1, len(layer.k_norm.module.weight)), layer.k_norm)
    shape = (len(h_ND), -1, decoder.head_dim)
    return q.view(shape), k.view(shape), v.view(shape)


def _inner(decoder: Architecture, layer: DecoderLayer, h_ND: Tensor) -> Tensor:
    """What an MLP hands to its last layer: activation(gate(h)) · up(h)."""
    if not decoder.gated:
        return decoder.activation(product(layer.mlp_in[0], h_ND))
    parts = [product(module, h_ND) for module in layer.mlp_in]
    gate, up = parts if len(parts) == 2 else parts[0].chunk(2, 1)
    if decoder.activation_name == "silu":
        return _gated_silu(gate, up)
    return decoder.activation(gate) * up


def _added(decoder: Architecture, x_ND: Tensor, part_ND: Tensor, norm: Norm | None) -> Tensor:
    """The stream with what a layer's attention or MLP adds to it."""
    part_ND = _normed(part_ND, norm)
    if decoder.residual_multiplier != 1:
        part_ND = part_ND * decoder.residual_multiplier
    return x_ND + part_ND


def _product_dtype(x: Tensor) -> torch.dtype:
    """What matrices are multiplied in: autocast's precision where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _normed(x: Tensor, norm: Norm | None) -> Tensor:
    """x normalised over its last dimension, RMS in float32; x itself where norm is None."""
    if norm is None:
        return x
    module = norm.module
    if isinstance(module, nn.LayerNorm):
        shape = module.normalized_shape
        return F.layer_norm(x, shape, module.weight, module.bias, module.eps)
    return _RMSNorm.apply(x, norm.weight.float(), norm.eps)


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


def _gated_silu(gate: Tensor, up: Tensor) -> Tensor:
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


class _Rotations:
    """Rotary positions of a batch's N tokens: a complex number for each pair of a head's numbers.

    turn [N, E]: see `Architecture.rotation`; heads: of queries, and of keys; scaling: of queries,
    for the softmax.
    """

    def __init__(self, turn_NE: Tensor, heads: tuple[int, int], scaling: float) -> None:
        self._queries = _for_heads(turn_NE * scaling, heads[0])
        self._keys = _for_heads(turn_NE, heads[1])
        self._rotated, self._scaling = 2 * turn_NE.shape[1], scaling

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
