"""Ctrl-C and SIGTERM end a run after the iteration at hand, saved; a second one ends it at once."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

from lmpg.runtime.processes import Processes

ECHO_SECONDS = 1.0  # a launcher passes on the Ctrl-C that the terminal has sent to all already


class StopRequest:
    """Context in which the first SIGINT or SIGTERM is remembered instead of raised."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._asked_at: float | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether any rank was asked to stop; every rank must call this together."""
        return any(self._processes.gather_list([self._asked_at is not None]))

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is not None:
            if now - self._asked_at > ECHO_SECONDS:
                raise KeyboardInterrupt
            return
        self._asked_at = now
        if self._processes.is_main:
            print("stopping after this iteration; once more to stop at once", flush=True)
