"""Requests beside one another: threads that a program need not wait for when it ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_AT_ONCE = 128
"""Requests that wait for an answer at the same time."""


class Threads:
    """Calls functions, the earliest first, at most so many at once."""

    def __init__(self, at_once: int = _AT_ONCE) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future, Callable[[], Any]]] = queue.SimpleQueue()
        self._free = at_once

    def __call__(self, function: Callable[[], Any]) -> Future:
        """What the function returns or raises, once it has been called."""
        future: Future = Future()
        self._waiting.put((future, function))
        if self._free:
            self._free -= 1
            threading.Thread(target=self._work, daemon=True, name="requests").start()
        return future

    def _work(self) -> None:
        while True:
            future, function = self._waiting.get()
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
