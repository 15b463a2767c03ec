"""The linear-quadratic regulator in one dimension: the best policy is linear and known."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

BOUND = 10.0
"""Of actions, far outside what a sensible policy does."""


class LQR(gymnasium.Env):
    """x' = x + a, r = −(x² + a²), x from U(−1, 1) at first; never ending, the limit truncates.

    Best is the mean −Kx with K = γP/(1 + γP) and V(x) = −Px² (less a constant that the policy's own
    noise costs), P the solution of P = 1 + γP/(1 + γP): K = .618034 and P = 1.618034 at γ = 1,
    K = .588403 and P = 1.588403 at γ = .9 (G17; Bertsekas, "Dynamic programming and optimal
    control", section 3.1). With `square` x² is seen beside x: then V is linear in what is seen.
    """

    def __init__(self, square: bool = False) -> None:
        self.square = square
        self.observation_space = spaces.Box(-np.inf, np.inf, (1 + square,), np.float64)
        self.action_space = spaces.Box(-BOUND, BOUND, (1,), np.float32)
        self.x = 0.0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Anywhere between −1 and 1."""
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1)
        return self._observation(), {}

    def step(self, action):
        """Move by the action."""
        a = float(np.clip(action[0], -BOUND, BOUND))
        reward = -(self.x**2 + a**2)
        self.x += a
        return self._observation(), reward, False, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.x, self.x**2] if self.square else [self.x])


def best_gain(gamma: float) -> float:
    """K of the best mean −Kx, from iterating P ← 1 + γP/(1 + γP)."""
    P = 1.0
    for _ in range(100):
        P = 1 + gamma * P / (1 + gamma * P)
    return gamma * P / (1 + gamma * P)
