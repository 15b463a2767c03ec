"""Processes that share out weights help one another to gather them, whoever needs some.

Weights that are shared out can be gathered by all processes together alone, but without gradients
each of them computes what it has to, and some have more than others. So before every gathering and
before every meeting all say what they want: gatherings come first, and who waits for a meeting, or
for another gathering, takes part and forgets what it was given.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

MEETING = 0
"""What is wanted where nothing is to be gathered any more."""


class Company:
    """What can be gathered, by number, the same on every process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._take_part: list[Callable[[], object]] = []

    def number_of(self, take_part: Callable[[], object]) -> int:
        """The number of another gathering; take_part: does this process's share of it."""
        self._take_part.append(take_part)
        return len(self._take_part)

    def come_to(self, wanted: int = MEETING) -> None:
        """Returns when all processes do what is `wanted` here, or take part in it; a meeting waits
        until nobody wants to gather anything."""
        while True:
            most = torch.tensor(wanted, device=self._device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            chosen = int(most)
            if chosen == wanted:
                return
            self._take_part[chosen - 1]()
