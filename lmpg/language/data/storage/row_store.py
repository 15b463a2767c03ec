"""Rows of a data set that are made when they are read: a million dicts would take gigabytes."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

Row = dict[str, Any]
Read = Callable[[int, int], list[Row]]
TOGETHER = 1000
"""Rows that are read at once where all are."""


class Rows(Sequence[Row]):
    """Rows in their order.

    read: gives those from a place to before another, both within the rows. columns: names of all,
    in the order in which they first appear.
    """

    def __init__(self, read: Read, count: int, columns: Iterable[str]) -> None:
        self.read = read
        self.columns = list(dict.fromkeys(columns))
        self._count = count

    def parts(self) -> Iterator[list[Row]]:
        """All rows, `TOGETHER` at a time."""
        for start in range(0, len(self), TOGETHER):
            yield self.read(start, min(start + TOGETHER, len(self)))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        for part in self.parts():
            yield from part

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Rows: ...
    def __getitem__(self, place: int | slice) -> Row | Rows:
        if isinstance(place, slice):
            start, stop, _ = place.indices(len(self))
            return _cut(self, start, max(start, stop))
        at = range(len(self))[place]
        return self.read(at, at + 1)[0]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(a == b for a, b in zip(self, other))


def as_rows(rows: Iterable[Row]) -> Rows:
    """Rows that are in memory, or `Rows` as they are."""
    if isinstance(rows, Rows):
        return rows
    listed = list(rows)
    columns = (name for row in listed for name in row)
    return Rows(lambda start, stop: listed[start:stop], len(listed), columns)


def packed(rows: Iterable[Row]) -> Rows:
    """Rows of JSON values, kept as JSON: as many bytes as a file of them has.

    They come back as they were given: text, numbers, order of the keys, NaN and infinity too.
    """
    text, ends, columns = bytearray(), array("q", [0]), dict[str, None]()
    write = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode
    for row in rows:
        columns |= dict.fromkeys(row)
        text += write(row).encode()
        ends.append(len(text))

    def read(start: int, stop: int) -> list[Row]:
        return [json.loads(text[ends[i] : ends[i + 1]].decode()) for i in range(start, stop)]

    return Rows(read, len(ends) - 1, columns)


def of_table(table: Any, change: Callable[[Row], Row]) -> Rows:
    """Rows of a table of the datasets library, which lies in a memory-mapped file, each through
    `change`."""
    arrow = table.with_format("arrow")  # plain values, as `to_list` gives them: nothing is decoded

    def read(start: int, stop: int) -> list[Row]:
        return [change(row) for row in arrow[start:stop].to_pylist()]

    return Rows(read, len(table), table.column_names if len(table) else ())


def joined(parts: Iterable[Rows]) -> Rows:
    """Several rows one after the other."""
    parts = list(parts)

    def read(start: int, stop: int) -> list[Row]:
        found: list[Row] = []
        for part in parts:
            if start < len(part) and stop > 0:
                found += part.read(max(start, 0), min(stop, len(part)))
            start, stop = start - len(part), stop - len(part)
        return found

    return Rows(read, sum(map(len, parts)), (name for part in parts for name in part.columns))


def changed(rows: Rows, change: Callable[[Row, int], Row], added: str) -> Rows:
    """Each row through a function of the row and its index, which may give it the column
    `added`."""

    def read(start: int, stop: int) -> list[Row]:
        return [change(row, i) for i, row in enumerate(rows.read(start, stop), start)]

    return Rows(read, len(rows), [*rows.columns, added])


def _cut(rows: Rows, first: int, end: int) -> Rows:
    """Those from `first` to before `end`."""

    def read(start: int, stop: int) -> list[Row]:
        return rows.read(first + start, first + stop)

    part = Rows(read, end - first, ())
    part.columns = list(dict.fromkeys(name for row in part for name in row))
    return part
