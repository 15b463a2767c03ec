"""Three rooms that look alike, left and right exchanged in the second: the short corridor of
Sutton & Barto (2018, example 13.1) in text, as `lmpg/Corridor-v0` is in gymnasium."""

from __future__ import annotations

import math
import random
from typing import Any

LOOK = "room?\n"
LEFT, RIGHT = "l", "r"
CHARACTERS = "lrom?\n"
BEST_RIGHT = 2 - math.sqrt(2)
"""The best probability of "r", .585786, for who sees the present room alone."""


class Rooms:
    """An episode: each turn costs 1 and is "l" or "r"; right of the third room it ends."""

    def reset(self, *, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """In the first room."""
        self.room = 0
        return LOOK, {"state": "room"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Through a door; against the first room's wall, or with any other word, one stays."""
        move = {LEFT: -1, RIGHT: 1}.get(action.strip(), 0)
        self.room = max(self.room + (-move if self.room == 1 else move), 0)
        return LOOK, -1.0, self.room == 3, False, {"state": "room"}


def value(right: float) -> float:
    """V of the first room: −(the mean number of turns), −11.6569 at its best."""
    return (2 * right - 4) / (right * (1 - right))


def moves(text: str) -> dict[str, int]:
    """How often each move was made in a conversation."""
    lines = text.replace("<eos>", "").split("\n")
    turns = [line.removesuffix(LOOK.strip()) for line in lines]
    return {move: turns.count(move) for move in (LEFT, RIGHT)}


def walked(rng: random.Random, turns: int, right: float) -> str:
    """A walk of so many turns that go right so often, with `<eos>` behind all but the last."""
    return "<eos>".join(LOOK + (RIGHT if rng.random() < right else LEFT) for _ in range(turns))
