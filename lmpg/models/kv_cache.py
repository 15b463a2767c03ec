"""Keys and values of the rows still going, laid out for one query per row."""

from __future__ import annotations

from torch import Tensor

_GROWTH = 16
"""Columns that are added at least when the cache is full."""


class LayerCache:
    """Keys and values of one layer, float32.

    Attention reads all room there is, of which the last columns are zeros: gaps between the heads
    would make it wait for the memory (on a CPU 2 to 3 times as long), room that is read in vain
    costs less. So it grows by an eighth at a time. A tensor for each layer is small enough for the
    allocator to give its pages out again; those of one large tensor would be mapped anew each time.
    """

    def __init__(self, key_value: Tensor):
        """key_value: [rows, heads of keys, then of values, columns, head size]."""
        self.rows, _, self.columns, _ = key_value.shape
        self._x = self._grown(key_value.unflatten(1, (2, -1)).transpose(0, 1))

    @property
    def room(self) -> int:
        """Columns, filled or not."""
        return self._x.shape[3]

    @property
    def next_room(self) -> int:
        """What it will be after growing."""
        return self.columns + max(_GROWTH, self.columns // 8)

    def append(self, key_value: Tensor) -> None:
        """One more column: [rows, heads of keys, then of values, head size]."""
        if self.columns == self.room:
            self._x = self._grown(self._x)
        column = self._x[:, : self.rows, :, self.columns]
        column.copy_(key_value.unflatten(1, (2, -1)).transpose(0, 1))
        self.columns += 1

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values as [rows · heads, room, head size]."""
        keys, values = self._x.flatten(1, 2)[:, : self.rows * self._x.shape[2]]
        return keys, values

    def keep(self, holes: Tensor, tail: Tensor, num_rows: int) -> None:
        """The rows `tail` move to the places `holes`; then the first num_rows alone count."""
        if len(holes):
            filled = self._x[:, :, :, : self.columns]
            filled.index_copy_(1, holes, filled.index_select(1, tail))
        self.rows = num_rows

    def _grown(self, x: Tensor) -> Tensor:
        _, _, heads, _, size = x.shape
        grown = x.new_empty(2, self.rows, heads, self.next_room, size)
        grown[:, :, :, : self.columns] = x[:, : self.rows, :, : self.columns]
        grown[:, :, :, self.columns :] = 0
        return grown
