"""Weights of an `Architecture`, packed into the form that the decode engines compute with.

Read again at the start of each rollout: they are copies, and an update changes the model's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lmpg.language.models.architectures import architecture
from lmpg.language.models.decoder_parts import Architecture, DecoderLayer, Norm
from lmpg.language.models.forward.kept_weights import FourBit, unpacked
from lmpg.language.models.lora import adapted_weight, is_lora
from lmpg.language.sampling.engines.linear import DenseLinear, PackedLinear, linear
from lmpg.runtime.sharding import held

Linear = DenseLinear | PackedLinear
Matrix = tuple[Tensor, Tensor | None]
"""Weight [out, in] and bias of a linear layer."""


@dataclass(frozen=True)
class NormWeights:
    """RMS norm, or with a bias layer norm, over the last dimension."""

    weight: Tensor
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class LayerWeights:
    """One `DecoderLayer`.

    qkv holds all queries' heads, then all keys', then all values'. head_norm_HE: the norm of
    queries' and keys' heads. In rotated heads the two numbers that are rotated together lie side
    by side, so that a rotation is a product of complex numbers. out and down are multiplied with
    the architecture's residual_multiplier.
    """

    attention_norm: NormWeights | None
    qkv: Linear
    head_norm_HE: NormWeights | None
    rotary: str | None
    window: int | None
    scaling: float
    out: Linear
    attention_post_norm: NormWeights | None
    mlp_norm: NormWeights | None
    gate: Linear
    up: Linear | None
    down: Linear
    mlp_post_norm: NormWeights | None


@dataclass(frozen=True)
class DecodeWeights:
    """A whole decoder without its head.

    rotations: by kind, [L, rotated pairs of a head] (complex) by position. norms_join_heads:
    whether `head_norm_HE` takes all heads of queries as one, and all of keys. dtype: of products;
    all else is float32.
    """

    embedding: Tensor
    embedding_scale: float
    position_embedding: Tensor | None
    rotations: dict[str, Tensor]
    layers: list[LayerWeights]
    last_norm: NormWeights
    activation: str
    heads: int
    kv_heads: int
    head_dim: int
    norms_join_heads: bool
    softcap: float | None
    num_positions: int
    dtype: torch.dtype

    @property
    def shared_by(self) -> int:
        """How many heads of queries share a head of keys and values."""
        return self.heads // self.kv_heads

    @property
    def windows(self) -> set[int]:
        """Sliding windows that some layers have."""
        return {layer.window for layer in self.layers if layer.window is not None}


Settle = Callable[[int, Any], Any]
"""What becomes of a part as soon as it is read: number of a layer (−1: the head), the part."""


@torch.no_grad()
def decode_weights(
    model: Any, length: int, dtype: torch.dtype, settle: Settle = lambda _, part: part
) -> DecodeWeights:
    """Copies of the weights as they are now, for contexts of `length` tokens."""
    with torch.autocast(model.device.type, enabled=False):
        decoder = architecture(model)
        positions = decoder.position_embedding
        kinds = {layer.rotary for layer in decoder.layers if layer.rotary is not None}
        device = decoder.embedding.weight.device
        like, position = torch.zeros(1, device=device), torch.arange(length, device=device)
        rotations = {kind: decoder.rotation(kind, like, position) for kind in sorted(kinds)}
        orders = {kind: _pair_order(decoder, x) for kind, x in rotations.items()}
        q_norm = decoder.layers[0].q_norm
        return DecodeWeights(
            embedding=decoder.embedding.weight.detach(),
            embedding_scale=decoder.embedding_scale,
            position_embedding=None if positions is None else positions.weight.detach(),
            rotations=rotations,
            layers=[
                _settled(i, x, settle, partial(_layer_weights, decoder, x, orders, length, dtype))
                for i, x in enumerate(decoder.layers)
            ],
            last_norm=_norm(decoder.last_norm),
            activation=decoder.activation_name,
            heads=decoder.heads,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            norms_join_heads=q_norm is not None and len(q_norm.module.weight) > decoder.head_dim,
            softcap=decoder.attention_softcap,
            num_positions=length if positions is None else len(positions.weight),
            dtype=dtype,
        )


def _settled(
    number: int, layer: DecoderLayer, settle: Settle, read: Callable[[], LayerWeights]
) -> LayerWeights:
    with held(layer.module):
        return settle(number, read())


def _layer_weights(
    decoder: Architecture,
    layer: DecoderLayer,
    orders: dict[str, Tensor],
    length: int,
    dtype: torch.dtype,
) -> LayerWeights:
    order = None if layer.rotary is None else orders[layer.rotary]
    qkv = _split([_read(x, dtype) for x in layer.qkv], decoder.qkv_sizes)
    mlp_in = [_read(x, dtype) for x in layer.mlp_in]
    if decoder.gated:
        mlp_in = _split(mlp_in, [len(mlp_in[0][0]) // 2] * 2)
    out, down = (
        _times(_read(x, dtype), decoder.residual_multiplier) for x in (layer.out, layer.down)
    )
    if order is not None:
        heads = decoder.heads, decoder.kv_heads
        qkv[:2] = [_ordered(x, n, order) for x, n in zip(qkv, heads)]
    window = layer.window
    return LayerWeights(
        attention_norm=_norm(layer.attention_norm),
        qkv=_together(qkv, dtype),
        head_norm_HE=_head_norm(decoder, layer, order),
        rotary=layer.rotary,
        window=None if window is None or window >= length else window,
        scaling=layer.scaling,
        out=_together([out], dtype),
        attention_post_norm=_norm(layer.attention_post_norm),
        mlp_norm=_norm(layer.mlp_norm),
        gate=_together(mlp_in[:1], dtype),
        up=_together(mlp_in[1:], dtype) if decoder.gated else None,
        down=_together([down], dtype),
        mlp_post_norm=_norm(layer.mlp_post_norm),
    )


def _read(module: Any, dtype: torch.dtype) -> Matrix:
    """(weight [out, in], bias) of a linear layer in `dtype` or as exact as it is kept, with an
    adapter that is switched on added."""
    inner = module.base_layer if is_lora(module) else module
    weight, bias = inner.weight.detach(), inner.bias if hasattr(inner, "bias") else None
    if isinstance(inner, FourBit):
        weight = unpacked(inner.weight, dtype)
    weight = weight.to(torch.promote_types(weight.dtype, dtype))
    if inner is not module and not module.merged and not module.disable_adapters:
        for name in module.active_adapters:
            if name in module.lora_A:
                weight = adapted_weight(module, name, weight)
    if isinstance(inner, transformers.pytorch_utils.Conv1D):
        weight = weight.T
    return weight, None if bias is None else bias.detach()


def _split(parts: list[Matrix], sizes: list[int]) -> list[Matrix]:
    """The one matrix among `parts` as several of so many outputs; several as they are."""
    if len(parts) > 1:
        return parts
    weight, bias = parts[0]
    biases = [None] * len(sizes) if bias is None else bias.split(sizes)
    return list(zip(weight.split(sizes), biases))


def _times(part: Matrix, factor: float) -> Matrix:
    if factor == 1:
        return part
    return part[0] * factor, None if part[1] is None else part[1] * factor


def _together(parts: list[Matrix], dtype: torch.dtype) -> Linear:
    """One layer whose outputs are those of all `parts` (weight, bias), one after the other."""
    weights = [weight.to(dtype) for weight, _ in parts]
    weight = weights[0] if len(parts) == 1 else torch.cat(weights)
    if all(bias is None for _, bias in parts):
        return linear(weight, None)
    biases = [w.new_zeros(len(w)) if bias is None else bias for w, bias in parts]
    return linear(weight, torch.cat(biases).to(dtype))


def _pair_order(decoder: Architecture, rotations: Tensor) -> Tensor:
    """Order of a head's numbers in which those that are rotated together are neighbours; in the
    model's own, half of what is rotated lies between them."""
    order, rotated = torch.arange(decoder.head_dim, device=rotations.device), 2 * rotations.shape[1]
    pairs = order[:rotated].view(2, -1).T.reshape(-1)
    return pairs if rotated == len(order) else torch.cat([pairs, order[rotated:]])


def _ordered(part: Matrix, heads: int, order: Tensor) -> Matrix:
    """The weight and bias of `part` with each head's outputs in the given order."""

    def ordered(x: Tensor) -> Tensor:
        return x.unflatten(0, (heads, -1)).index_select(1, order).flatten(0, 1)

    return ordered(part[0]), None if part[1] is None else ordered(part[1])


def _head_norm(
    decoder: Architecture, layer: DecoderLayer, order: Tensor | None
) -> NormWeights | None:
    if layer.q_norm is None or layer.k_norm is None:
        return None
    parts = []
    for norm, heads in ((layer.q_norm, decoder.heads), (layer.k_norm, decoder.kv_heads)):
        weight = norm.weight.detach().float().view(-1, decoder.head_dim)
        weight = weight if order is None else weight.index_select(1, order)
        parts.append(weight.expand(heads, -1))
    return NormWeights(torch.cat(parts), None, layer.q_norm.eps)


def _norm(norm: Norm | None) -> Any:
    if norm is None:
        return None
    weight = norm.weight.detach().float()
    bias = getattr(norm.module, "bias", None)
    if bias is None and isinstance(norm.module, nn.LayerNorm):
        bias = torch.zeros_like(weight)
    return NormWeights(weight, None if bias is None else bias.detach().float(), norm.eps)
