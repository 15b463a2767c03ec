"""Texts through `DecodeWeights`, on any device, and what a decode step on a CPU shares with that.

N tokens (a step's rows, or all of a prefill), H heads of queries, K heads of keys and values, E
numbers of a head, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor
from torch.nn import functional as F

from lmpg.language.models.inputs import read_together
from lmpg.language.sampling.engines.weights import (
    DecodeWeights,
    LayerWeights,
    Linear,
    NormWeights,
)

Take = Callable[[int, slice, Tensor], None]
"""What is done with the keys and values [P, K + K, L, E] that a layer, by its number, has of some
prompts."""


def read_prompts(
    w: DecodeWeights, ids_PL: Tensor, mask_PL: Tensor, position_PL: Tensor, take: Take
) -> Tensor:
    """Hidden states [P, D] after prompts (padded left), some of which are read at a time; hands
    each layer's keys and values to `take`, the first layer's first. On any device."""
    hidden = []
    for part in read_together(ids_PL):
        texts = ids_PL[part], mask_PL[part], position_PL[part]
        hidden.append(_read_part(w, *texts, part, take))
    return hidden[0] if len(hidden) == 1 else torch.cat(hidden)


def _read_part(
    w: DecodeWeights, ids_PL: Tensor, mask_PL: Tensor, position_PL: Tensor, part: slice, take: Take
) -> Tensor:
    """Hidden states [P, D] after the prompts of a part, which are read together."""
    visible = {window: _visible(mask_PL, window) for window in (None, *w.windows)}
    layers = count()

    def alone(key_value: Tensor) -> tuple[Tensor, Tensor]:
        take(next(layers), part, key_value)
        keys, values = key_value.chunk(2, 1)
        return keys, values

    return read_on(w, ids_PL, position_PL, visible, alone)


def read_on(
    w: DecodeWeights,
    ids_RM: Tensor,
    position_RM: Tensor,
    visible: dict[int | None, Tensor],
    with_context: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """Hidden states [R, D] after texts (padded left) that may go on from others. On any device.

    visible: by window, which tokens of the whole context each new token sees, [R, 1, M, W].
    with_context: is handed each layer's keys and values of the new tokens, [R, K + K, M, E], the
    first layer's first, and gives those of the whole context, [R, K, W, E] each.
    """
    shape_RM = ids_RM.shape
    stream = embedded(w, ids_RM.flatten(), position_RM.flatten())
    turn = rotations(w, position_RM.flatten())
    for layer in w.layers:
        x = heads(w, layer, stream, turn).unflatten(0, shape_RM).transpose(1, 2)
        query, key_value = x.split([w.heads, 2 * w.kv_heads], 1)
        key, value = with_context(key_value)
        if ids_RM.device.type != "cpu":  # there, no attention with a mask knows groups of heads
            key, value = (x.repeat_interleave(w.shared_by, 1) for x in (key, value))
            query, key, value = (x.to(w.dtype) for x in (query, key, value))
        mask = visible[layer.window]
        mixed = _attended_prompts(query, key, value, mask, layer.scaling, w.softcap)
        stream = after_attention(w, layer, stream, mixed)
    return normed(stream.unflatten(0, shape_RM)[:, -1], w.last_norm)


def embedded(w: DecodeWeights, ids_N: Tensor, positions_N: Tensor) -> Tensor:
    """The residual stream [N, D] before the first layer, float32."""
    stream = w.embedding.index_select(0, ids_N).float()
    if w.embedding_scale != 1:
        stream = stream * w.embedding_scale
    if w.position_embedding is not None:
        stream = stream + w.position_embedding.index_select(0, positions_N)
    return stream


def rotations(w: DecodeWeights, positions_N: Tensor) -> dict[str, Tensor]:
    """By kind, [N, 1, rotated pairs] (complex)."""
    return {kind: x.index_select(0, positions_N)[:, None] for kind, x in w.rotations.items()}


def heads(
    w: DecodeWeights, layer: LayerWeights, stream: Tensor, rotations: dict[str, Tensor]
) -> Tensor:
    """Queries, keys and values [N, H + K + K, E], normed and rotated where the model does."""
    x = layer.qkv(normed(stream, layer.attention_norm).to(w.dtype)).float()
    x = x.view(len(x), -1, w.head_dim)
    turned = x[:, : w.heads + w.kv_heads]
    if layer.head_norm_HE is not None:
        turned.copy_(_head_normed(w, turned, layer.head_norm_HE))
    if layer.rotary is not None:
        rotation = rotations[layer.rotary]
        if 2 * rotation.shape[2] < w.head_dim:
            turned = turned[..., : 2 * rotation.shape[2]]
        # pairs of neighbours as complex numbers
        torch.view_as_complex(turned.unflatten(2, (-1, 2))).mul_(rotation)
    return x


def _head_normed(w: DecodeWeights, x_NHE: Tensor, norm: NormWeights) -> Tensor:
    if not w.norms_join_heads:
        return normed(x_NHE, norm)
    sizes = [w.heads, w.kv_heads]
    parts = zip(x_NHE.split(sizes, 1), norm.weight.split(sizes))
    joined = [
        normed(x.flatten(1), NormWeights(weight.flatten(), None, norm.eps)).view_as(x)
        for x, weight in parts
    ]
    return torch.cat(joined, 1)


def after_attention(w: DecodeWeights, layer: LayerWeights, stream: Tensor, mixed: Tensor) -> Tensor:
    """The stream after a layer, whose attention gave `mixed` [N, H · E]."""
    stream = _added(stream, layer.out, mixed.to(w.dtype), layer.attention_post_norm)
    h = normed(stream, layer.mlp_norm).to(w.dtype)
    inner = layer.gate.activated(h, w.activation)
    if layer.up is not None:
        inner = layer.up.times(h, inner)
    return _added(stream, layer.down, inner, layer.mlp_post_norm)


def _added(stream: Tensor, linear: Linear, x: Tensor, norm: NormWeights | None) -> Tensor:
    """The stream with the norm of linear(x) added."""
    if norm is None:
        return linear.added_to(stream, x)
    return stream + normed(linear(x).float(), norm)


def normed(x: Tensor, norm: NormWeights | None) -> Tensor:
    """The norm of x over its last dimension; x where there is none."""
    if norm is None:
        return x
    if norm.bias is not None:
        return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    # F.rms_norm's steps with fewer calls, which is what counts for a few rows on a CPU
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.square_().mul_(1 / x.shape[-1]).add_(norm.eps).rsqrt_()
    return (x * scale).mul_(norm.weight)


def softcapped(scores: Tensor, softcap: float) -> Tensor:
    """c · tanh(score / c)."""
    return (scores / softcap).tanh() * softcap


def _visible(mask_PL: Tensor, window: int | None) -> Tensor:
    """[P, 1, L, L]: which tokens of prompts see which, itself among them.

    Padding sees itself alone: a row of scores that are all −∞ would be NaN.
    """
    width, device = mask_PL.shape[1], mask_PL.device
    causal_LL = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    itself_LL = torch.eye(width, dtype=torch.bool, device=device)
    if window is not None:
        causal_LL = causal_LL & ~causal_LL.tril(-window)
    return (causal_LL & (mask_PL[:, None] > 0) | itself_LL)[:, None]


def visible_behind(start_R: Tensor, width: int, new: int, window: int | None) -> Tensor:
    """[R, 1, M, W]: which tokens of contexts that begin in column start_R and end in the last of
    `width` each of the last `new` columns sees, itself among them."""
    column_W = torch.arange(width, device=start_R.device)
    column_M1 = column_W[width - new :, None]
    seen_MW = column_W <= column_M1
    if window is not None:
        seen_MW = seen_MW & (column_W > column_M1 - window)
    inside_RMW = seen_MW & (column_W >= start_R[:, None, None])
    return (inside_RMW | (column_W == column_M1))[:, None]


def _attended_prompts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """Attention within prompts: query [P, H, L, E] to key, value [P, K, L, E]; [P·L, H·E]."""
    if softcap is None:
        mixed = F.scaled_dot_product_attention(
            query, key, value, visible, scale=scaling, enable_gqa=True
        )
    else:
        shared_by = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(shared_by, 1) for x in (key, value))
        scores = softcapped((query @ key.mT).float() * scaling, softcap)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        mixed = weights.to(value.dtype) @ value
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)
