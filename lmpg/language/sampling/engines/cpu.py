"""The CPU engine: `DecodeWeights` applied to a few rows at a time, with a cache that grows.

Letters beyond the legend: N tokens (a step's rows, or all of a prefill), H heads of queries, K
heads of keys and values, E numbers of a head, D hidden size. The residual stream, norms, attention
and cache are float32 whatever the precision of the products: with one query per row, products of
bfloat16 are slower than those of float32 on a CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lmpg.language.models.inputs import mask_and_positions, moved, rows_of_parts
from lmpg.language.sampling.engines.prefill import (
    after_attention,
    embedded,
    heads,
    normed,
    read_on,
    read_prompts,
    rotations,
    softcapped,
    visible_behind,
)
from lmpg.language.sampling.engines.stored import Stored, Unread
from lmpg.language.sampling.engines.weights import DecodeWeights

_GROWTH = 16
"""Columns that are added at least when the cache is full."""


class CpuDecoder:
    """Hidden states after the last token of R rows: `prefill` once, then `advance` token by token.

    The rows still going lie in the first R places of the cache; `keep` moves rows into the places
    of those that leave, so that leaving costs one row's copy.
    """

    def __init__(self, weights: DecodeWeights, longest: int):
        """longest: tokens of a context at most."""
        self._weights, self._longest = weights, longest
        self._last_position = weights.num_positions - 1
        self._windows = weights.windows

    def prefill(self, ids_PL: Tensor, lengths_P: Tensor, prompt_R: Tensor) -> Tensor:
        """Reads prompts (padded left) and opens a row for each entry of prompt_R; hidden [R, D]
        after each row's prompt."""
        self._position_R = lengths_P.index_select(0, prompt_R)
        self._start_R = ids_PL.shape[1] - self._position_R
        self._caches: list[_LayerCache] = []
        end_P = torch.full_like(lengths_P, ids_PL.shape[1])
        mask_PL, position_PL = mask_and_positions(end_P - lengths_P, end_P, ids_PL.shape[1])
        hidden_PL = torch.zeros_like(mask_PL, dtype=torch.float32)
        hidden_PL.masked_fill_(mask_PL == 0, -torch.inf)
        # without padding one row of it serves all
        padded = bool((mask_PL == 0).any())
        self._bias_RL = hidden_PL.index_select(0, prompt_R) if padded else hidden_PL[:1]
        parts = rows_of_parts(ids_PL, prompt_R)

        def opened(layer: int, part: slice, key_value: Tensor) -> None:
            rows, prompts = parts[part.start]
            read = _halves(key_value.index_select(0, prompts))
            if len(parts) == 1:
                self._caches.append(_LayerCache(read, self._longest))
                return
            if layer == len(self._caches):
                nothing = read.new_zeros(()).expand(2, len(prompt_R), *read.shape[2:])
                self._caches.append(_LayerCache(nothing, self._longest))
            self._caches[layer].filled[:, rows] = read

        read = read_prompts(self._weights, ids_PL, mask_PL, position_PL, opened)
        return read.index_select(0, prompt_R)

    def go_on(self, unread: Unread) -> Tensor:
        """Opens a row for each text, of which only the tokens that are not stored are read; hidden
        [R, D] after each.

        All texts end in the last column, so that nothing lies between the tokens of a row.
        """
        w, width, new = self._weights, unread.width, unread.new
        self._position_R, self._start_R = unread.lengths_R, width - unread.lengths_R
        column_W, start_R1 = torch.arange(width), self._start_R[:, None]
        self._bias_RL = torch.zeros(len(start_R1), width)
        self._bias_RL.masked_fill_(column_W < start_R1, -torch.inf)
        position_RM = (column_W[width - new :] - start_R1).clamp(min=0)
        visible = {x: visible_behind(self._start_R, width, new, x) for x in (None, *w.windows)}
        real_RM = column_W[width - new :] >= width - unread.new_R[:, None]
        ends = (width - unread.new_R).tolist()
        self._caches = []

        def with_context(key_value: Tensor) -> tuple[Tensor, Tensor]:
            read = _halves(key_value)
            nothing = read.new_zeros(()).expand(*read.shape[:3], width, read.shape[4])
            cache = _LayerCache(nothing, self._longest)
            unread.place(cache.filled, len(self._caches), ends)
            tail = cache.filled[:, :, :, width - new :]
            tail.copy_(torch.where(real_RM[:, None, :, None], read, tail))
            self._caches.append(cache)
            keys, values = cache.filled
            return keys, values

        return read_on(w, unread.ids_RM, position_RM, visible, with_context)

    def stored(self, places: list[int]) -> list[Stored]:
        """What is cached of the rows in `places`."""
        layers = [cache.filled[:, places] for cache in self._caches]
        starts = self._start_R[places].tolist()
        return [[x[:, i, :, start:] for x in layers] for i, start in enumerate(starts)]

    def advance(self, tokens_R: Tensor) -> Tensor:
        """Appends a token to each row; hidden [R, D] after it."""
        w = self._weights
        stream = embedded(w, tokens_R, self._position_R)
        turn, biases = rotations(w, self._position_R), self._biases()
        for layer, cache in zip(w.layers, self._caches):
            x_RHE = heads(w, layer, stream, turn)
            cache.append(x_RHE[:, w.heads :])
            query, bias = x_RHE[:, : w.heads], biases[layer.window]
            mixed = _attended(query, *cache.whole(), bias, layer.scaling, w.softcap)
            stream = after_attention(w, layer, stream, mixed)
        # a finished row that has not left yet must not run out of the model's positions
        self._position_R = (self._position_R + 1).clamp_(max=self._last_position)
        return normed(stream, w.last_norm)

    def keep(self, holes: Tensor, tail: Tensor, num_rows: int) -> None:
        """Moves the rows `tail` to the places `holes`; the first num_rows go on."""
        for cache in self._caches:
            cache.keep(holes, tail, num_rows)
        self._position_R = moved(self._position_R, holes, tail, num_rows)
        self._start_R = moved(self._start_R, holes, tail, num_rows)
        if len(self._bias_RL) > 1:
            self._bias_RL = moved(self._bias_RL, holes, tail, num_rows)

    def _biases(self) -> dict[int | None, Tensor]:
        """By window: what is added to scores [R·K, heads of a group, room] once a token more is
        cached, −∞ in padding of prompts, in room that is not filled and outside the window."""
        cache = self._caches[0]
        self._bias_RL = F.pad(self._bias_RL, (0, 1))
        columns = self._bias_RL.shape[1]
        room = cache.room if cache.columns < cache.room else cache.next_room
        bias_RL = F.pad(self._bias_RL, (0, room - columns), value=-torch.inf)
        if len(bias_RL) > 1:
            bias_RL = bias_RL.repeat_interleave(self._weights.kv_heads, 0)
        biases: dict[int | None, Tensor] = {None: bias_RL[:, None]}
        for window in self._windows:
            biases[window] = bias_RL[:, None].clone()
            biases[window][:, :, : max(columns - window, 0)] = -torch.inf
        return biases


def _attended(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """Attention of one query per row [R, H, E] to its context, [R·K, room, E] each: [R, H·E]."""
    grouped = query.reshape(len(keys), -1, query.shape[2])
    if softcap is None:
        scores = torch.baddbmm(bias, grouped, keys.transpose(1, 2), alpha=scaling)
    else:
        scores = softcapped(torch.bmm(grouped, keys.transpose(1, 2)) * scaling, softcap) + bias
    return torch.bmm(scores.softmax(-1), values).view(len(query), -1)


def _halves(key_value: Tensor) -> Tensor:
    """[R, K + K, …] as keys and values, [2, R, K, …]."""
    return key_value.unflatten(1, (2, -1)).transpose(0, 1)


class _LayerCache:
    """Keys and values of one layer, float32, in storage for the longest context.

    Attention reads the whole room, filled or not, because gaps between the heads' keys would make
    it 2 to 3 times as slow on a CPU. Unfilled columns are zeros and masked. Room grows by an eighth
    at a time, so that few columns are read in vain; of the storage the system maps what is used.
    """

    def __init__(self, x: Tensor, longest: int):
        """x: [keys and values, rows, heads, columns, head size]."""
        _, self.rows, heads, self.columns, size = x.shape
        self._longest = longest
        self._storage = x.new_empty(2 * self.rows * heads * longest * size)
        self._x = self._with_more_room(x)

    @property
    def filled(self) -> Tensor:
        """The columns that are filled, of the rows that go on: [2, rows, heads, columns, size]."""
        return self._x[:, : self.rows, :, : self.columns]

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
        column.copy_(_halves(key_value))
        self.columns += 1

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values as [rows · heads, room, head size]."""
        keys, values = self._x.flatten(1, 2)[:, : self.rows * self._x.shape[2]]
        return keys, values

    def keep(self, holes: Tensor, tail: Tensor, num_rows: int) -> None:
        """Moves the rows `tail` to the places `holes`; the first num_rows go on."""
        # row by row: a row's whole room is copied in one piece
        for hole, row in zip(holes.tolist(), tail.tolist()):
            self._x[:, hole] = self._x[:, row]
        self.rows = num_rows

    def _with_more_room(self, x: Tensor) -> Tensor:
        """The columns of x, copied into the storage, which is laid out for the next room."""
        _, rows, heads, columns, size = x.shape
        shape = (2, rows, heads, self.next_room, size)
        laid_out = self._storage[: math.prod(shape)].view(shape)
        laid_out[:, :, :, :columns] = x
        laid_out[:, :, :, columns:] = 0
        return laid_out
