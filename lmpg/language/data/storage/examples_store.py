"""Examples that are made when they are asked for, of token ids that lie in arrays: a list of ids
takes ten times as much memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np

E = TypeVar("E")


class Lists:
    """Several lists of whole numbers for each example, all lists of a kind in one array.

    kinds: what the numbers of each list are, as the module `array` calls it: "i" for token ids,
    "b" for truth values.
    """

    def __init__(self, kinds: str = "i") -> None:
        self._values = [array(kind) for kind in kinds]
        self._ends = [array("q", [0]) for _ in kinds]

    def __len__(self) -> int:
        return len(self._ends[0]) - 1

    def append(self, *lists: Iterable[int]) -> None:
        """Add an example."""
        for values, ends, given in zip(self._values, self._ends, lists):
            values.extend(given)
            ends.append(len(values))

    def read(self, i: int, kind: int = 0) -> list[int]:
        """A list of example `i`, as it was given."""
        ends = self._ends[kind]
        return self._values[kind][ends[i] : ends[i + 1]].tolist()

    def lengths(self, kind: int = 0) -> np.ndarray:
        """Of a list of each example, int64 [len]."""
        return np.diff(np.frombuffer(self._ends[kind], np.int64))

    def sums(self, kind: int = 0) -> np.ndarray:
        """Of a list of each example, int64 [len]."""
        values = np.frombuffer(self._values[kind], self._values[kind].typecode)
        before = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        return np.diff(before[np.frombuffer(self._ends[kind], np.int64)])


class Stored(Sequence[E], Generic[E]):
    """Examples in an order, each made anew whenever it is asked for.

    make: gives the example at a place of the store. order: the places in their order, int64 [len].
    store: what `make` reads, where somebody needs to know.
    """

    def __init__(self, make: Callable[[int], E], order: Any, store: Lists | None = None) -> None:
        self.make = make
        self.order = np.asarray(order, np.int64)
        self.store = store

    def take(self, places: Any) -> Stored[E]:
        """Those at these places of `self`, in that order, from the same store."""
        return Stored(self.make, self.order[places], self.store)

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, i: int) -> E: ...
    @overload
    def __getitem__(self, i: slice) -> list[E]: ...
    def __getitem__(self, i: int | slice) -> E | list[E]:
        if isinstance(i, slice):
            return [self.make(int(place)) for place in self.order[i]]
        return self.make(int(self.order[i]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(a == b for a, b in zip(self, other))


def taken(examples: Sequence[E], places: Any) -> Sequence[E]:
    """The examples at these places, in that order."""
    if isinstance(examples, Stored):
        return examples.take(places)
    return [examples[int(i)] for i in places]
