"""Functions of the scores of responses: running statistics, and the penalty of over-long ones."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RunningMoments:
    """Count and mean of all scores so far, and the sum of their squared distances from the mean."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def after(self, scores: list[float]) -> RunningMoments:
        """The moments with `scores` added (Chan et al. 1979, eq. 2.1); how scores are divided into
        lists does not matter."""
        if not scores:
            return self
        mean = math.fsum(scores) / len(scores)
        squares = math.fsum((x - mean) ** 2 for x in scores)
        count, apart = self.count + len(scores), mean - self.mean
        return RunningMoments(
            count,
            self.mean + apart * len(scores) / count,
            self.squares + squares + apart**2 * self.count * len(scores) / count,
        )

    @property
    def std(self) -> float:
        """The unbiased standard deviation; 0 of fewer than two scores."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0


def overlong_punishment(length: int, max_length: int, margin: int) -> float:
    """Soft punishment of over-long responses (arXiv 2503.14476, eq. 13), from 0 down to −1.

    0 up to `max_length` − `margin` tokens, then linear over the last `margin` ones.
    """
    if margin == 0:
        return 0.0
    return min(0.0, max(-1.0, (max_length - margin - length) / margin))
