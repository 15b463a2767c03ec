"""How far a long piece of work has come: a line every few seconds, none where it is short."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
EVERY = 5.0
"""Seconds between two lines."""


def with_progress(items: Iterable[T], what: str, count: int | None = None) -> Iterator[T]:
    """The items, saying now and then how many there have been and what time is left.

    what: they are and what is done to them. count: how many there will be, where that is known.
    """
    tell = teller(what, count)
    for number, item in enumerate(items):
        tell(number)
        yield item


def teller(what: str, count: int | None = None) -> Callable[[int], None]:
    """A function to be told how many are done, which prints it now and then; the main process alone
    does."""
    began = said = time.monotonic()
    silent = os.environ.get("RANK", "0") != "0"
    of = "" if count is None else f" of {count:,}"

    def tell(done: int) -> None:
        nonlocal said
        now = time.monotonic()
        if done and done != count and now - said >= EVERY and not silent:
            said = now
            left = "" if count is None else f", {time_left(now - began, done, count)}"
            print(f"{done:,}{of} {what}{left}", flush=True)

    return tell


def time_left(elapsed: float, done: int, count: int) -> str:
    """Such as `1:02 left`, where `done` of `count` took so many seconds."""
    return f"{clock(max(elapsed / done * (count - done), 0.0))} left"


def clock(seconds: float) -> str:
    """Seconds as 1:02 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
