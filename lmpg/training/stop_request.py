"""Signals that ask a run to stop: it ends saved, after the iteration at hand."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from lmpg.runtime import launcher
from lmpg.runtime.processes import Processes

GRACE = 30.0
"""Seconds that torch's launcher gives its processes after SIGTERM, unless it is told otherwise."""
ECHO_SECONDS = 1.0  # a launcher passes on the Ctrl-C that the terminal has sent to all already


class StopRequest:
    """Context in which the first Ctrl-C, SIGTERM or SIGHUP (the terminal was closed) is remembered
    instead of raised: the run ends after the iteration at hand, saved; a second ends it at once."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._asked: int | None = None
        self._asked_at = 0.0
        self._old: dict[int, Any] = {}
        self._last, self._said = time.monotonic(), False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets the main thread alone hear signals, and they are its own
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if not (ignored and number == signal.SIGHUP):  # nohup
                self._old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def requested(self, problem: str | None = None) -> tuple[int | None, list[str | None]]:
        """The signal by which any rank was asked to stop, and every rank's problem; every rank must
        call this together."""
        self._say_what_is_too_long(time.monotonic())
        found = self._processes.gather_list([(self._asked, problem)])
        return next((number for number, _ in found if number), None), [text for _, text in found]

    def _say_what_is_too_long(self, now: float) -> None:
        """Once: an iteration that the launcher's grace is too short for ends unsaved."""
        seconds, self._last = now - self._last, now
        if seconds < GRACE / 2 or self._said or "TORCHELASTIC_RUN_ID" not in os.environ:
            return
        self._said = True
        if self._processes.is_main and not launcher.has_shutdown_timeout():
            print(
                f"an iteration takes {seconds:.0f} s, but the launcher kills its processes "
                f"{GRACE:.0f} s after SIGTERM, saved or not: torchrun --shutdown-timeout "
                f"{2 * seconds + GRACE:.0f} gives them time",
                flush=True,
            )

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked is not None:
            if now - self._asked_at > ECHO_SECONDS:
                raise interruption(number)
            return
        self._asked, self._asked_at = number, now
        if self._processes.is_main:
            print("stopping after this iteration; once more to stop at once", flush=True)


def interruption(number: int) -> BaseException:
    """What a signal ends a program with: KeyboardInterrupt for Ctrl-C, else the exit code by which
    shells tell that the program was ended by it."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
