"""Says which process of a run is waited for: a stopped one would be waited for in silence.

Each process counts its meetings, at which all exchange something, and tells the others how far it
has come. Whoever waits long looks who has not come yet.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 10.0
"""Seconds of waiting before it is said; twice as many after each time that it was for nothing."""

EVERY = 1.0


class Waiting:
    """How long this process, number `rank` of `count`, has waited at its present meeting.

    board: what all processes write to and read, as torch.distributed's store.
    """

    def __init__(self, rank: int, count: int, board: Any) -> None:
        self._rank, self._count, self._board = rank, count, board
        self._name = f"process {os.getpid()} on {socket.gethostname()}"
        self._meeting, self._since = 0, 0.0
        self._patience = self._next = PATIENCE
        self._told: list[int] = []

    def start(self) -> None:
        """Tell the others and look, every second, in a thread of its own."""
        threading.Thread(target=self._watch, daemon=True, name="waiting").start()

    def tell(self) -> None:
        """Let the others know how far this process has come."""
        self._board.set(_key(self._rank), f"{self._meeting} {self._name}")

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """The block returns once all processes have come to it."""
        self._meeting += 1
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = 0.0

    def look(self, now: float) -> str | None:
        """A line for the log, where it is time for one and this process is the one to say it: the
        first of those that have come."""
        since, waited = self._since, now - self._since
        if not since:
            if not self._told:
                return None
            back, self._told = self._told, []
            self._patience *= 2
            self._next = self._patience
            return f"{self._ranks(back)} has come, training goes on"
        if waited < self._next:
            return None
        self._next = 2 * waited
        late = [rank for rank in range(self._count) if self._behind(rank)]
        if not late or any(rank not in late for rank in range(self._rank)):
            return None
        self._told = late
        return (
            f"rank {self._rank} has waited {waited:.0f} s for {self._ranks(late)}; "
            "if it is stopped or hangs, let it go on, or end the run and resume it"
        )

    def _behind(self, rank: int) -> bool:
        if rank == self._rank:
            return False
        return self._said_by(rank)[0] < self._meeting

    def _said_by(self, rank: int) -> tuple[int, str]:
        if not self._board.check([_key(rank)]):
            return 0, "not started yet"
        meeting, _, name = self._board.get(_key(rank)).decode().partition(" ")
        return int(meeting), name

    def _ranks(self, ranks: list[int]) -> str:
        return " and ".join(f"rank {rank} ({self._said_by(rank)[1]})" for rank in ranks)

    def _watch(self) -> None:
        said = -1
        while True:
            try:
                if self._meeting != said:
                    said = self._meeting
                    self.tell()
                line = self.look(time.monotonic())
            except (RuntimeError, ValueError, OSError):  # the others have gone
                return
            if line:
                print(line, flush=True)
            time.sleep(EVERY)


def _key(rank: int) -> str:
    return f"lmpg/waiting/{rank}"
