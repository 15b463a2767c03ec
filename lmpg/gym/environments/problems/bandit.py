"""One decision, then the episode is over."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

from lmpg.gym.environments.problems.finite import FiniteMDP


def bandit(means: tuple[float, ...] = (1.0, 0.0)) -> FiniteMDP:
    """Arms with these expected rewards.

    Softmax policy, two arms 1 and 0, θ = (0, 0): gradient (.25, −.25), natural gradient (.5, −.5),
    variance of a sample .0625 and exactly 0 with baseline ½ (G12). With an entropy bonus τ the
    best policy is softmax(means / τ) (G14).
    """
    return FiniteMDP(np.zeros((1, len(means), 1)), np.array([means]), np.ones(1), 1.0)


class Bandit(gymnasium.Env):
    """n arms; reward N(mean of the arm, noise²): see `bandit`."""

    def __init__(self, means: tuple[float, ...] = (1.0, 0.0), noise: float = 0.0) -> None:
        self.mdp = bandit(tuple(means))
        self.noise = noise
        self.observation_space = spaces.Discrete(1)
        self.action_space = spaces.Discrete(len(means))

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """There is one observation."""
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        """Pull an arm."""
        noise = self.noise * self.np_random.standard_normal() if self.noise else 0.0
        return 0, float(self.mdp.r_SA[0, action] + noise), True, False, {}
