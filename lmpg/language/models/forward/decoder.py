"""The training forward: any `Architecture` over a ragged batch, with gradients.

It calls the model's own linear layers and reads its own weights, and what it gives is what
transformers gives; the rest (norms, positions, attention, padding) is done in fewer passes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lmpg.language.models.decoder_parts import Architecture, DecoderLayer, Norm
from lmpg.language.models.forward.attention import Attention
from lmpg.language.models.forward.ops import Rotations, gated_silu, normed, product_dtype
from lmpg.language.models.forward.ragged import Ragged


def hidden_states(decoder: Architecture, ragged: Ragged) -> Tensor:
    """The hidden states [M, D] that predict a batch's response tokens, after the last norm."""
    x_ND = _embedded(decoder, ragged)
    dtype = product_dtype(x_ND)
    rotations = _rotations(decoder, ragged, x_ND)
    attentions = _attentions(decoder, ragged, dtype)
    for layer in decoder.layers:
        h_ND = normed(x_ND, layer.attention_norm).to(dtype)
        q_NHD, k_NKD, v_NKD = _heads(decoder, layer, h_ND)
        if layer.rotary is None:
            q_NHD = q_NHD * layer.scaling
        else:
            q_NHD, k_NKD = rotations[layer.rotary, layer.scaling](q_NHD, k_NKD)
        taken_ND = attentions[layer.window](q_NHD.to(dtype), k_NKD.to(dtype), v_NKD)
        if layer is decoder.layers[-1]:  # what follows is read where a response token is predicted
            taken_ND, x_ND = (x.index_select(0, ragged.state_M) for x in (taken_ND, x_ND))
        x_ND = _added(decoder, x_ND, layer.out(taken_ND), layer.attention_post_norm)
        h_ND = normed(x_ND, layer.mlp_norm).to(dtype)
        x_ND = _added(decoder, x_ND, layer.down(_inner(decoder, layer, h_ND)), layer.mlp_post_norm)
    return normed(x_ND, decoder.last_norm)


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
) -> dict[tuple[str, float], Rotations]:
    """By a layer's rotation, and the scaling of its queries for the softmax."""
    kinds = {(x.rotary, x.scaling) for x in decoder.layers if x.rotary is not None}
    heads = decoder.heads, decoder.kv_heads
    return {
        (kind, scaling): Rotations(*decoder.cos_sin(kind, x_ND, ragged.positions_N), heads, scaling)
        for kind, scaling in kinds
    }


def _attentions(
    decoder: Architecture, ragged: Ragged, dtype: torch.dtype
) -> dict[int | None, Attention]:
    """By the window of a layer; those that no row fills are none."""
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
        [module(h_ND) for module in layer.qkv]
        if len(layer.qkv) == 3
        else layer.qkv[0](h_ND).split(decoder.qkv_sizes, 1)
    )
    if layer.q_norm is not None and layer.k_norm is not None:
        q = normed(q.view(len(q), -1, len(layer.q_norm.module.weight)), layer.q_norm)
        k = normed(k.view(len(k), -1, len(layer.k_norm.module.weight)), layer.k_norm)
    shape = (len(h_ND), -1, decoder.head_dim)
    return q.view(shape), k.view(shape), v.view(shape)


def _inner(decoder: Architecture, layer: DecoderLayer, h_ND: Tensor) -> Tensor:
    """What an MLP hands to its last layer: activation(gate(h)) · up(h)."""
    if not decoder.gated:
        return decoder.activation(layer.mlp_in[0](h_ND))
    parts = [module(h_ND) for module in layer.mlp_in]
    gate, up = parts if len(parts) == 2 else parts[0].chunk(2, 1)
    if decoder.activation_name == "silu":
        return gated_silu(gate, up)
    return decoder.activation(gate) * up


def _added(decoder: Architecture, x_ND: Tensor, part_ND: Tensor, norm: Norm | None) -> Tensor:
    """The stream with what a layer's attention or MLP adds to it."""
    part_ND = normed(part_ND, norm)
    if decoder.residual_multiplier != 1:
        part_ND = part_ND * decoder.residual_multiplier
    return x_ND + part_ND
