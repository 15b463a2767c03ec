"""Guess a number from 1 to N by "higher" and "lower"; the best play is binary search."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

MOST = 15
CHARACTERS = "0123456789-?\nhigerlowta"
HIGHER, LOWER, RIGHT, WHAT = "higher\n", "lower\n", "right\n", "what?\n"


def opening(most: int = MOST) -> str:
    """What a game begins with."""
    return f"1-{most}?\n"


class Guess:
    """A game: each guess costs 1, the right one ends it. The number is the row's `number`.

    `info["state"]` is what is known: the numbers that it can still be.
    """

    def reset(self, *, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """A new game; without a row's `number` one that follows from the seed."""
        self.low, self.high = 1, int(options.get("most", MOST))
        drawn = random.Random(seed).randint(1, self.high)
        self.number = int(options.get("number", drawn))
        return opening(self.high), self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Where the number lies from this guess; what is no number costs as much."""
        text = action.strip()
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            return WHAT, -1.0, False, False, self._info()
        guess = int(text)
        if guess == self.number:
            return RIGHT, -1.0, True, False, self._info()
        if guess < self.number:
            self.low = max(self.low, guess + 1)
            return HIGHER, -1.0, False, False, self._info()
        self.high = min(self.high, guess - 1)
        return LOWER, -1.0, False, False, self._info()

    def _info(self) -> dict[str, Any]:
        return {"state": f"{self.low}-{self.high}"}


@cache
def fewest(count: int) -> int:
    """Guesses over all `count` numbers that it may be, together, by the best play."""
    if count == 0:
        return 0
    return count + min(fewest(k) + fewest(count - 1 - k) for k in range(count))


def best_mean(most: int = MOST) -> float:
    """Mean guesses of the best play, where every number is equally likely: 49/15 for N = 15.

    A guess splits the numbers that it may be in two; the halves are best (binary search).
    """
    return fewest(most) / most


def random_mean(most: int = MOST) -> float:
    """Mean guesses of who draws each guess from the numbers that it can still be."""
    means = [0.0]
    for n in range(1, most + 1):  # the mean over guesses of what is left, weighed by its numbers
        means.append(1 + 2 * sum(k * means[k] for k in range(n)) / n**2)
    return means[most]


def guesses(text: str) -> int:
    """How many guesses a conversation holds: those that an answer follows, and one without."""
    answers = (HIGHER, LOWER, WHAT)
    return sum(map(text.count, answers)) + (not text.endswith(answers))


def played(rng: random.Random, careless: float, most: int = MOST) -> str:
    """A game by who draws each guess from the numbers that it can still be, or, with probability
    `careless`, from all; with `<eos>` behind every turn but the last."""
    game, said = Guess(), opening(most)
    game.reset(seed=rng.randrange(2**31), options={"most": most})
    while True:
        any_of_all = rng.random() < careless
        low, high = (1, most) if any_of_all else (game.low, game.high)
        guess = str(rng.randint(low, high))
        answer, _, done, _, _ = game.step(guess)
        if done:
            return f"{said}{guess}"
        said += f"{guess}<eos>{answer}"
