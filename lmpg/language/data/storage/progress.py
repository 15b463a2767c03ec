"""How far a long piece of work has come: a line every few seconds, none where it is short."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
EVERY = 5.0
"""Seconds between two lines."""


def with_progress(items: Iterable[T], what: str, count: int | None = None) -> Iterator[T]:
    """The items, saying now and then how many there have been; the main process alone does.

    what: they are and what is done to them. count: how many there will be, where that is known.
    """
    said, silent = time.monotonic(), os.environ.get("RANK", "0") != "0"
    of = "" if count is None else f" of {count:,}"
    for number, item in enumerate(items):
        if number and number % 1000 == 0 and time.monotonic() - said >= EVERY and not silent:
            said = time.monotonic()
            print(f"data: {number:,}{of} {what}", flush=True)
        yield item
