"""Two-digit addition: problems as text, and the exact-match reward."""

from __future__ import annotations

import random

CHARACTERS = "0123456789+="


def problems(rng: random.Random) -> list[dict[str, str]]:
    """Every sum of two two-digit numbers, shuffled, as columns `prompt` and `answer`."""
    numbers = range(10, 100)
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in numbers for b in numbers]
    rng.shuffle(rows)
    return rows


def exact_match(completions: list[str], answer: list[str]) -> list[float]:
    """Reward function: 1 for the right answer and nothing but it, else 0."""
    return [float(x == y) for x, y in zip(completions, answer)]
