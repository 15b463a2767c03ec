"""Keys and values of the rows still going, laid out for one query per row."""

from __future__ import annotations

import torch
from torch import Tensor

_GROWTH = 16
"""Columns that are added at least when the cache is full."""


class LayerCache:
    """Keys and values of one layer, [rows, heads, room, head size] of float32 each.

    Attention reads all room there is, of which the last columns are zeros: gaps between the heads
    would make it wait for the memory (on a CPU 2 to 3 times as long), room that is read in vain
    costs less. So it grows by an eighth at a time. A tensor for each layer is small enough for the
    allocator to give its pages out again; those of one large tensor would be mapped anew each time.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        self.rows, self.columns = keys.shape[0], keys.shape[2]
        self._keys, self._values = self._grown(keys), self._grown(values)

    def append(self, key: Tensor, value: Tensor) -> None:
        """One more column: [rows, heads, head size] each."""
        at = self.columns
        if at == self.room:
            self._keys, self._values = self._grown(self._keys), self._grown(self._values)
        self._keys[: self.rows, :, at] = key
        self._values[: self.rows, :, at] = value
        self.columns += 1

    @property
    def room(self) -> int:
        """Columns, filled or not."""
        return self._keys.shape[2]

    @property
    def next_room(self) -> int:
        """What it will be after growing."""
        return self.columns + max(_GROWTH, self.columns // 8)

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values as [rows · heads, room, head size]."""
        size = self.rows * self._keys.shape[1]
        return self._keys.flatten(0, 1)[:size], self._values.flatten(0, 1)[:size]

    def keep(self, holes: Tensor, tail: Tensor, num_rows: int) -> None:
        """The rows `tail` move to the places `holes`; then the first num_rows alone count."""
        if len(holes):
            for x in (self._keys, self._values):
                filled = x[:, :, : self.columns]
                filled.index_copy_(0, holes, filled.index_select(0, tail))
        self.rows = num_rows

    def _grown(self, x: Tensor) -> Tensor:
        _, heads, _, size = x.shape
        grown = x.new_empty(self.rows, heads, self.next_room, size)
        grown[:, :, : self.columns] = x[: self.rows]
        grown[:, :, self.columns :] = 0
        return grown
