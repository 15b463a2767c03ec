"""Observations and rewards brought to unit scale by running statistics, which are saved and frozen
outside training."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

LIMIT = 10.0
"""Normalised numbers are clipped to ± this."""
EPS = 1e-8


@dataclass
class Moments:
    """Mean and (biased) variance of all rows seen so far, float64, per column."""

    mean: np.ndarray
    var: np.ndarray
    count: float = 1e-4  # as if a row of mean 0 and variance 1 had been seen with this weight

    @classmethod
    def of_size(cls, size: int) -> Moments:
        """Of nothing yet."""
        return cls(np.zeros(size), np.ones(size))

    def add(self, rows: np.ndarray) -> None:
        """Count the rows [N, size] in (Chan et al. 1979, eq. 2.1)."""
        n = len(rows)
        if rows.size == 1:  # a single number: Python's own arithmetic takes a fifth of the time
            mean, var, self.count = _with_one(
                self.mean.item(), self.var.item(), self.count, rows.item()
            )
            self.mean, self.var = np.array([mean]), np.array([var])
        elif n == 1:
            self.mean, self.var, self.count = _with_one(self.mean, self.var, self.count, rows[0])
        elif n:
            self._add_many(rows, n)

    def _add_many(self, rows: np.ndarray, n: int) -> None:
        count = self.count + n
        mean = np.add.reduce(rows, 0, dtype=np.float64) / n
        apart, centred = mean - self.mean, rows - mean
        squares = np.add.reduce(centred * centred, 0) + apart * apart * (self.count * n / count)
        self.mean = self.mean + apart * (n / count)
        self.var, self.count = self.var * (self.count / count) + squares / count, count

    @property
    def scale(self) -> np.ndarray:
        """What a number is divided by."""
        return np.sqrt(self.var + EPS)


@dataclass
class Normaliser:
    """What a runner's policy sees and is paid; statistics grow only where that is said.

    observations: (x − mean)/std. rewards: r/std of the running discounted return, not centred, as
    a shift would change what episodes of different lengths are worth. None leaves them as they
    are. gamma: discount of that return. returns_B: of the present episodes.
    """

    observations: Moments | None = None
    rewards: Moments | None = None
    gamma: float = 1.0
    returns_B: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def for_run(
        cls, observations: bool, rewards: bool, size: int, num_envs: int, gamma: float
    ) -> Normaliser:
        """Statistics of nothing yet, for what is asked for."""
        return cls(
            Moments.of_size(size) if observations else None,
            Moments.of_size(1) if rewards else None,
            gamma,
            np.zeros(num_envs),
        )

    def seen(self, features: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Normalised features [B, F], after those that an action is `chosen` in were counted in."""
        if self.observations is not None:
            self.observations.add(features if chosen.all() else features[chosen])
        return self.normalised(features)

    def normalised(self, features: np.ndarray) -> np.ndarray:
        """Features [B, F] by what is known, float32."""
        if self.observations is None:
            return features
        found = (features - self.observations.mean) / self.observations.scale
        return _limited(found).astype(np.float32)

    def paid(self, rewards: np.ndarray, chosen: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """Scaled rewards [B], after the return up to each `chosen` step was counted in."""
        if self.rewards is None:
            return rewards
        returns_B = self.returns_B * self.gamma + rewards
        if chosen.all():
            self.returns_B = returns_B
            self.rewards.add(returns_B[:, None])
        else:
            self.returns_B = np.where(chosen, returns_B, self.returns_B)
            self.rewards.add(self.returns_B[chosen, None])
        self.returns_B = self.returns_B * ~ended
        return _limited(rewards / self.rewards.scale)

    def state(self) -> dict[str, Any]:
        """Arrays and numbers with which `load_state` goes on bit for bit."""
        return asdict(self)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.observations, self.rewards = (
            None if state[name] is None else Moments(**state[name])
            for name in ("observations", "rewards")
        )
        self.gamma, self.returns_B = state["gamma"], state["returns_B"]

    def frozen(self) -> Normaliser:
        """A copy of what is known of observations: all that acting needs."""
        return Normaliser(copy.deepcopy(self.observations))


def _with_one(mean: Any, var: Any, count: float, x: Any) -> tuple[Any, Any, float]:
    """The same with one more row, which has no spread of its own."""
    new, apart = count + 1, x - mean
    return mean + apart / new, (var + apart * apart / new) * (count / new), new


def _limited(x: np.ndarray) -> np.ndarray:
    """`x`, cut in place; np.clip takes three times as long for few numbers."""
    return np.minimum(np.maximum(x, -LIMIT, out=x), LIMIT, out=x)
