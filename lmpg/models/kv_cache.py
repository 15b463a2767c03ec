"""Keys and values of the rows still going, laid out for one query per row."""

from __future__ import annotations

import math

from torch import Tensor

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
