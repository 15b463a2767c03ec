"""A decoder's forward for sampling: functional code over `FusedWeights` with a preallocated cache.

Letters beyond the legend: N tokens (a step's rows, or all of a prefill), H heads of queries, K
heads of keys and values, E numbers of a head, D hidden size. The residual stream, norms, attention
and cache are float32 whatever the precision of the products: with one query per row, products of
bfloat16 are slower than those of float32 on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lmpg.language.models.inputs import mask_and_positions
from lmpg.language.sampling.engines.weights import FusedWeights, Layer, Norm


class FusedTrunk:
    """Hidden states after the last token of R rows: `prefill` once, then `advance` token by token.

    The rows still going lie in the first R places of the cache; `keep` moves rows into the places
    of those that leave, so that leaving costs one row's copy.
    """

    def __init__(self, weights: FusedWeights, longest: int):
        """longest: tokens of a context at most."""
        self._weights, self._longest = weights, longest
        self._last_position = weights.num_positions - 1

    def prefill(self, ids_PL: Tensor, lengths_P: Tensor, prompt_R: Tensor) -> Tensor:
        """Reads prompts (padded left) and opens a row for each entry of prompt_R; hidden [R, D]
        after each row's prompt."""
        self._position_R = lengths_P.index_select(0, prompt_R)
        self._caches: list[LayerCache] = []
        end_P = torch.full_like(lengths_P, ids_PL.shape[1])
        mask_PL, position_PL = mask_and_positions(end_P - lengths_P, end_P, ids_PL.shape[1])
        hidden_PL = torch.zeros_like(mask_PL, dtype=torch.float32)
        hidden_PL.masked_fill_(mask_PL == 0, -torch.inf)
        # without padding one row of it serves all
        padded = bool((mask_PL == 0).any())
        self._bias_RL = hidden_PL.index_select(0, prompt_R) if padded else hidden_PL[:1]

        def opened(key_value: Tensor) -> None:
            cache = LayerCache(key_value.index_select(0, prompt_R), self._longest)
            self._caches.append(cache)

        return self.read(ids_PL, mask_PL, position_PL, opened).index_select(0, prompt_R)

    def read(
        self,
        ids_PL: Tensor,
        mask_PL: Tensor,
        position_PL: Tensor,
        take: Callable[[Tensor], None],
    ) -> Tensor:
        """Hidden states [P, D] after prompts (padded left); hands each layer's keys and values,
        [P, K + K, L, E], to `take`, the first layer's first."""
        w, shape_PL = self._weights, ids_PL.shape
        stream = self._embedded(ids_PL.flatten(), position_PL.flatten())
        rotations = self._rotations(position_PL.flatten())
        for layer in w.layers:
            heads = self._heads(layer, stream, rotations).unflatten(0, shape_PL).transpose(1, 2)
            query, key_value = heads.split([w.num_heads, 2 * w.num_groups], 1)
            key, value = key_value.chunk(2, 1)
            take(key_value)
            if ids_PL.device.type != "cpu":  # there, no attention with a mask knows groups of heads
                key, value = (x.repeat_interleave(w.group_size, 1) for x in (key, value))
                query, key, value = (x.to(w.dtype) for x in (query, key, value))
            mixed = _causal_attention(query, key, value, mask_PL, layer.scaling)
            stream = self._after_attention(layer, stream, mixed)
        return _normed(stream.unflatten(0, shape_PL)[:, -1], w.last_norm)

    def advance(self, tokens_R: Tensor) -> Tensor:
        """Appends a token to each row; hidden [R, D] after it."""
        stream = self._embedded(tokens_R, self._position_R)
        rotations = self._rotations(self._position_R)
        bias, num_heads = self._bias(), self._weights.num_heads
        for layer, cache in zip(self._weights.layers, self._caches):
            heads = self._heads(layer, stream, rotations)
            cache.append(heads[:, num_heads:])
            mixed = _attended(heads[:, :num_heads], *cache.whole(), bias, layer.scaling)
            stream = self._after_attention(layer, stream, mixed)
        # a finished row that has not left yet must not run out of the model's positions
        self._position_R = (self._position_R + 1).clamp_(max=self._last_position)
        return _normed(stream, self._weights.last_norm)

    def keep(self, holes: Tensor, tail: Tensor, num_rows: int) -> None:
        """The rows `tail` move to the places `holes`; then the first num_rows alone go on."""
        for cache in self._caches:
            cache.keep(holes, tail, num_rows)
        self._position_R = moved(self._position_R, holes, tail, num_rows)
        if len(self._bias_RL) > 1:
            self._bias_RL = moved(self._bias_RL, holes, tail, num_rows)

    def _embedded(self, ids_N: Tensor, positions_N: Tensor) -> Tensor:
        w = self._weights
        stream = w.embedding.index_select(0, ids_N).float()
        if w.position_embedding is not None:
            stream = stream + w.position_embedding.index_select(0, positions_N)
        return stream

    def _rotations(self, positions_N: Tensor) -> Tensor | None:
        table = self._weights.rotations
        return None if table is None else table.index_select(0, positions_N)[:, None]

    def _bias(self) -> Tensor:
        """What is added to scores [R·K, heads of a group, room] once a token more is cached: −∞ in
        the padding of prompts and in room that is not filled."""
        cache = self._caches[0]
        self._bias_RL = F.pad(self._bias_RL, (0, 1))
        room = cache.room if cache.columns < cache.room else cache.next_room
        bias_RL = F.pad(self._bias_RL, (0, room - self._bias_RL.shape[1]), value=-torch.inf)
        if len(bias_RL) > 1:
            bias_RL = bias_RL.repeat_interleave(self._weights.num_groups, 0)
        return bias_RL[:, None]

    def _heads(self, layer: Layer, stream: Tensor, rotations: Tensor | None) -> Tensor:
        """Queries, keys and values [N, H + K + K, E], normed and rotated where the model does."""
        w = self._weights
        x = layer.qkv(_normed(stream, layer.attention_norm).to(w.dtype)).float()
        x = x.view(len(x), -1, w.head_dim)
        turned = x[:, : w.num_heads + w.num_groups]
        if layer.head_norm_HE is not None:
            turned.copy_(_normed(turned, layer.head_norm_HE))
        if rotations is not None:
            # pairs of neighbours as complex numbers
            torch.view_as_complex(turned.unflatten(2, (-1, 2))).mul_(rotations)
        return x

    def _after_attention(self, layer: Layer, stream: Tensor, mixed: Tensor) -> Tensor:
        w = self._weights
        stream = layer.out.added_to(stream, mixed.to(w.dtype))
        normed = _normed(stream, layer.mlp_norm).to(w.dtype)
        inner = layer.gate.activated(normed, w.activation)
        if layer.up is not None:
            inner = layer.up.times(normed, inner)
        return layer.down.added_to(stream, inner)


def moved(x_R: Tensor, holes: Tensor, tail: Tensor, num_rows: int) -> Tensor:
    """The first num_rows of x, with the rows `tail` in the places `holes`."""
    if not len(holes):
        return x_R[:num_rows]
    return x_R[:num_rows].index_copy(0, holes, x_R.index_select(0, tail))


def _normed(x: Tensor, norm: Norm) -> Tensor:
    if norm.bias is not None:
        return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    # F.rms_norm's steps with fewer calls, which is what counts for a few rows on a CPU
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.square_().mul_(1 / x.shape[-1]).add_(norm.eps).rsqrt_()
    return (x * scale).mul_(norm.weight)


def _attended(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """Attention of one query per row [R, H, E] to its context, [R·K, room, E] each: [R, H·E]."""
    grouped = query.reshape(len(keys), -1, query.shape[2])
    scores = torch.baddbmm(bias, grouped, keys.transpose(1, 2), alpha=scaling)
    return torch.bmm(scores.softmax(-1), values).view(len(query), -1)


def _causal_attention(
    query: Tensor, key: Tensor, value: Tensor, mask_PL: Tensor, scaling: float
) -> Tensor:
    """Attention within prompts: query [P, H, L, E] to key, value [P, K, L, E]; [P·L, H·E].

    Padding attends to itself alone: a row of scores that are all −∞ would be NaN.
    """
    width = mask_PL.shape[1]
    causal_LL = torch.ones(width, width, dtype=torch.bool, device=query.device).tril()
    itself_LL = torch.eye(width, dtype=torch.bool, device=query.device)
    visible_PLL = causal_LL & (mask_PL[:, None] > 0) | itself_LL
    mixed = F.scaled_dot_product_attention(
        query, key, value, visible_PLL[:, None], scale=scaling, enable_gqa=True
    )
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


_GROWTH = 16
"""Columns that are added at least when the cache is full."""


class LayerCache:
    """Keys and values of one layer, float32.

    Attention reads all room there is, of which the last columns are zeros: gaps between the heads
    would make it wait for the memory (on a CPU 2 to 3 times as long), room that is read in vain
    costs less. So room grows by an eighth at a time, within storage for the longest context, of
    which the system maps only what is used.
    """

    def __init__(self, key_value: Tensor, longest: int):
        """key_value: [rows, heads of keys, then of values, columns, head size]."""
        self.rows, heads, self.columns, size = key_value.shape
        self._longest = longest
        self._storage = key_value.new_empty(self.rows * heads * longest * size)
        self._x = self._with_more_room(key_value.unflatten(1, (2, -1)).transpose(0, 1))

    @property
    def room(self) -> int:
        """Columns, filled or not."""
        return self._x.shape[3]

    @property
    def next_room(self) -> int:
        """What it will be after growing."""
        return min(self.columns + max(_GROWTH, self.columns // 8), self._longest)

    def append(self, key_value: Tensor) -> None:
        """One more column: [rows, heads of keys, then of values, head size]."""
        if self.columns == self.room:
            self._x = self._with_more_room(self._x[:, : self.rows].clone())
        column = self._x[:, : self.rows, :, self.columns]
        column.copy_(key_value.unflatten(1, (2, -1)).transpose(0, 1))
        self.columns += 1

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values as [rows · heads, room, head size]."""
        keys, values = self._x.flatten(1, 2)[:, : self.rows * self._x.shape[2]]
        return keys, values

    def keep(self, holes: Tensor, tail: Tensor, num_rows: int) -> None:
        """The rows `tail` move to the places `holes`; then the first num_rows alone count."""
        # row by row: a row's whole room is copied in one piece
        for hole, row in zip(holes.tolist(), tail.tolist()):
            self._x[:, hole] = self._x[:, row]
        self.rows = num_rows

    def _with_more_room(self, x: Tensor) -> Tensor:
        """The columns of x, which lies elsewhere, in storage laid out for the next room."""
        _, rows, heads, columns, size = x.shape
        shape = (2, rows, heads, self.next_room, size)
        laid_out = self._storage[: math.prod(shape)].view(shape)
        laid_out[:, :, :, :columns] = x
        laid_out[:, :, :, columns:] = 0
        return laid_out
