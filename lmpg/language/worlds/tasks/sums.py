"""Two-digit addition: problems as text, and the exact-match reward."""

from __future__ import annotations

import random
from collections.abc import Sequence

CHARACTERS = "0123456789+="
Problem = dict[str, str]


def parts(sizes: Sequence[int], rng: random.Random) -> list[list[Problem]]:
    """Parts of `sizes` problems (columns `prompt` and `answer`), and one of nearly all the rest.

    37+58 and 58+37 are never in different parts: a model that has learned one knows the other.
    """
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    rng.shuffle(pairs)
    found = []
    for size in sizes:
        part: list[Problem] = []
        while len(part) < size:
            part += _both_ways(*pairs.pop(), rng)
        found.append(part[:size])  # the twin of the last one may fall out: it is in no part
    rest = [problem for pair in pairs for problem in _both_ways(*pair, rng)]
    rng.shuffle(rest)
    return [*found, rest]


def exact_match(completions: list[str], answer: list[str]) -> list[float]:
    """Reward function: 1 for the right answer and nothing but it, else 0."""
    return [float(x == y) for x, y in zip(completions, answer)]


def _both_ways(a: int, b: int, rng: random.Random) -> list[Problem]:
    orders = [(a, b)] if a == b else [(a, b), (b, a)]
    rng.shuffle(orders)
    return [{"prompt": f"{x}+{y}=", "answer": str(x + y)} for x, y in orders]
