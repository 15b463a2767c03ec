"""Observations and rewards scaled by running statistics, which are saved with the agent.

The statistics grow in training alone; elsewhere they stand still.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

LIMIT = 10.0
"""Normalised numbers are clipped to ± this."""
EPS = 1e-8


@dataclass
class ColumnMoments:
    """Running mean and (biased) variance of each column of the rows seen so far, in float64."""

    mean: np.ndarray
    var: np.ndarray
    count: float = 1e-4  # as if a row of mean 0 and variance 1 had been seen with this weight

    @classmethod
    def of_size(cls, size: int) -> ColumnMoments:
        """The moments of `size` columns before the first row."""
        return cls(np.zeros(size), np.ones(size))

    def add(self, rows: np.ndarray) -> None:
        """Update with rows [N, size] (Chan et al. 1979, eq. 2.1)."""
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
        """√(variance + ε), by which numbers are divided."""
        return np.sqrt(self.var + EPS)


@dataclass
class Normaliser:
    """Scales the observations that a policy sees and the rewards that it learns from.

    observations: (x − mean)/std. rewards: r/std of the running discounted return, not centred, as
    a shift would change what episodes of different lengths are worth. None leaves them as they
    are. gamma: discount of that return. returns_B: of the present episodes.
    """

    observations: ColumnMoments | None = None
    rewards: ColumnMoments | None = None
    gamma: float = 1.0
    returns_B: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def for_run(
        cls, observations: bool, rewards: bool, size: int, num_envs: int, gamma: float
    ) -> Normaliser:
        """Fresh statistics for what a run's settings ask to normalise."""
        return cls(
            ColumnMoments.of_size(size) if observations else None,
            ColumnMoments.of_size(1) if rewards else None,
            gamma,
            np.zeros(num_envs),
        )

    def update_and_normalise(self, features: np.ndarray, acted: np.ndarray) -> np.ndarray:
        """Normalised features [B, F], once the statistics hold those rows that `acted`, [B]."""
        if self.observations is not None:
            self.observations.add(features if acted.all() else features[acted])
        return self.normalised(features)

    def normalised(self, features: np.ndarray) -> np.ndarray:
        """Features [B, F] scaled by the statistics as they stand, float32."""
        if self.observations is None:
            return features
        found = (features - self.observations.mean) / self.observations.scale
        return _limited(found).astype(np.float32)

    def scaled_rewards(
        self, rewards: np.ndarray, acted: np.ndarray, ended: np.ndarray
    ) -> np.ndarray:
        """Scaled rewards [B], once the statistics hold the running returns of rows that `acted`."""
        if self.rewards is None:
            return rewards
        returns_B = self.returns_B * self.gamma + rewards
        if acted.all():
            self.returns_B = returns_B
            self.rewards.add(returns_B[:, None])
        else:
            self.returns_B = np.where(acted, returns_B, self.returns_B)
            self.rewards.add(self.returns_B[acted, None])
        self.returns_B = self.returns_B * ~ended
        return _limited(rewards / self.rewards.scale)

    def state(self) -> dict[str, Any]:
        """Arrays and numbers with which `load_state` goes on bit for bit."""
        return asdict(self)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.observations, self.rewards = (
            None if state[name] is None else ColumnMoments(**state[name])
            for name in ("observations", "rewards")
        )
        self.gamma, self.returns_B = state["gamma"], state["returns_B"]

    def frozen(self) -> Normaliser:
        """A copy for acting outside training: the observations' statistics alone."""
        return Normaliser(copy.deepcopy(self.observations))


def _with_one(mean: Any, var: Any, count: float, x: Any) -> tuple[Any, Any, float]:
    """Mean, variance and count with one more row x."""
    new, apart = count + 1, x - mean
    return mean + apart / new, (var + apart * apart / new) * (count / new), new


def _limited(x: np.ndarray) -> np.ndarray:
    """`x` clipped in place; np.clip takes three times as long for few numbers."""
    return np.minimum(np.maximum(x, -LIMIT, out=x), LIMIT, out=x)
