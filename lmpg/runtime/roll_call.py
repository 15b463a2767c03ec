"""Who of a run's processes lives and has come to where all exchange something, and who has not.

Each process meets the others again and again, counts these meetings, and gives a sign every second.
The first process keeps the roll: it says for whom the others wait, and decides when to give one up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

PATIENCE = 10.0
"""Seconds of waiting before it is said; twice as many after each time that it was for nothing."""

ENDED = 5.0
"""Seconds that others wait for a process that has ended in order: they may be about to end too."""


@dataclass
class Sign:
    """What is known of a process.

    name: its number and machine. heard: when it gave the last sign. meeting: how many it has come
    to. waiting_since: when it came to the present one; None where it is at none. busy: whether it
    may take its time, as one does that works for all. gone: whether it ended, without a word.
    why: what it ended with in order; None where it has not.
    """

    heard: float
    name: str = "not started yet"
    meeting: int = 0
    waiting_since: float | None = None
    busy: bool = True
    gone: bool = False
    why: str | None = None


class RollCall:
    """The signs of the processes of these ranks. timeout: seconds after which one is given up that
    gives no sign, or that is waited for."""

    def __init__(self, ranks: Iterable[int], timeout: float, now: float) -> None:
        self.timeout = timeout
        self._signs = {rank: Sign(now) for rank in ranks}
        self._patience = self._next = PATIENCE
        self._told: list[int] = []

    def hear(self, rank: int, said: dict[str, Any], now: float) -> None:
        """Take down a sign: `name`, `meeting`, `waiting`, `busy`, and `why` once it ends."""
        sign = self._signs[rank]
        sign.heard, sign.name, sign.why = now, said["name"], said.get("why")
        sign.busy = said["busy"]
        if not said["waiting"]:
            sign.waiting_since = None
        elif sign.waiting_since is None or said["meeting"] != sign.meeting:
            sign.waiting_since = now
        sign.meeting = said["meeting"]

    def lose(self, rank: int) -> None:
        """Its connection was closed: the process has ended, in order where it said so."""
        self._signs[rank].gone = self._signs[rank].why is None

    def verdict(self, now: float) -> tuple[int, str] | None:
        """The process that the run ends for, and what became of it; None while all is well."""
        for rank, what in self._lost(now):
            return rank, f"rank {rank} ({self._signs[rank].name}) {what}"
        return None

    def has_left(self, rank: int) -> bool:
        """Whether it has ended, whatever for: its connections are closed."""
        return self._signs[rank].gone or self._signs[rank].why is not None

    def silent(self, rank: int, now: float) -> float:
        """Seconds since its last sign."""
        return now - self._signs[rank].heard

    def line(self, now: float) -> str | None:
        """A line for the log, where it is time for one: who waits for whom, or has come."""
        late, waited = self._late(), self._waited(now)
        if not late:
            if not self._told:
                return None
            back, self._told = self._told, []
            self._patience *= 2
            self._next = self._patience
            return f"{self._named(back)} has come, training goes on"
        if waited < self._next:
            return None
        self._next, self._told = 2 * waited, late
        first = next(rank for rank, x in self._signs.items() if x.waiting_since is not None)
        return (
            f"rank {first} has waited {waited:.0f} s for {self._named(late)}; "
            "if it is stopped or hangs, let it go on, or end the run and resume it"
        )

    def _lost(self, now: float) -> Iterator[tuple[int, str]]:
        late, waited = self._late(), self._waited(now)
        for rank, sign in self._signs.items():
            silent = self.silent(rank, now)
            if sign.gone:
                yield rank, "has ended"
            elif sign.why is not None:
                if rank in late and waited > ENDED:
                    yield rank, f"has ended{sign.why and ': '}{sign.why}"
            elif silent > self.timeout:
                yield rank, f"has given no sign of life for {silent:.0f} s (run.rank_timeout)"
            elif rank in late and not sign.busy and waited > self.timeout:
                yield rank, f"has kept the others waiting for {waited:.0f} s (run.rank_timeout)"

    def _late(self) -> list[int]:
        """Who has not come yet to the latest meeting that others wait at."""
        latest = max((sign.meeting for sign in self._waiting()), default=0)
        return [rank for rank, sign in self._signs.items() if sign.meeting < latest]

    def _waited(self, now: float) -> float:
        """How long somebody has waited there by now."""
        waiting = self._waiting()
        latest = max((sign.meeting for sign in waiting), default=0)
        since = (x.waiting_since or 0.0 for x in waiting if x.meeting == latest)
        return now - min(since, default=now)

    def _waiting(self) -> list[Sign]:
        return [sign for sign in self._signs.values() if sign.waiting_since is not None]

    def _named(self, ranks: list[int]) -> str:
        return " and ".join(f"rank {rank} ({self._signs[rank].name})" for rank in ranks)
