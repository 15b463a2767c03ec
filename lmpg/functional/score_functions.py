"""Scores of whole responses: their running statistics, and what over-long ones are charged."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Moments:
    """Mean of all numbers seen so far and the sum of their squared distances from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def after(self, values: list[float]) -> Moments:
        """With `values` added, the same whatever came together (Chan et al. 1979, eq. 2.1)."""
        if not values:
            return self
        mean = math.fsum(values) / len(values)
        squares = math.fsum((x - mean) ** 2 for x in values)
        count, apart = self.count + len(values), mean - self.mean
        return Moments(
            count,
            self.mean + apart * len(values) / count,
            self.squares + squares + apart**2 * self.count * len(values) / count,
        )

    @property
    def std(self) -> float:
        """Unbiased; 0 of fewer than two numbers."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0


def overlong_punishment(length: int, max_length: int, margin: int) -> float:
    """Soft punishment of over-long responses (arXiv 2503.14476, eq. 13), from 0 down to −1.

    0 up to `max_length` − `margin` tokens, then linear over the last `margin` ones.
    """
    if margin == 0:
        return 0.0
    return min(0.0, max(-1.0, (max_length - margin - length) / margin))
