"""A puck on a table, to be pushed to a target that moves away from time to time."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

STEP = 0.1
"""Seconds per decision."""
MAX_FORCE = 0.5
"""Newton along each axis, on a puck of 1 kg: a metre takes about 3 s, braking included."""
FRICTION = 0.1
"""1/s: share of the velocity that is lost per second."""
MOVE_EVERY = 50
"""Steps after which the target is somewhere else."""


class Puck(gymnasium.Env):
    """Sees position, velocity and target − position; pays −distance (m) at each step.

    After the puck worlds of Baxter, Bartlett & Weaver (2001, "Experiments with infinite-horizon,
    policy-gradient estimation"). The table reaches from −1 to 1 m, walls stop the puck. Forces are
    so small that it must brake before it arrives. Yardsticks for the 200 steps, means of 100
    episodes: no force at all −203, `braking`, a controller set by hand, −68.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-3.0, 3.0, (6,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.position, self.velocity, self.target = np.zeros((3, 2))
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """At rest; puck and target anywhere on the table."""
        super().reset(seed=seed)
        self.position, self.target = self.np_random.uniform(-1, 1, (2, 2))
        self.velocity = np.zeros(2)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        """Push with `action` · MAX_FORCE for 0.1 s."""
        force = MAX_FORCE * np.clip(action, -1, 1)
        self.velocity += STEP * (force - FRICTION * self.velocity)
        position = self.position + STEP * self.velocity
        self.position = position.clip(-1, 1)
        self.velocity[self.position != position] = 0
        distance = float(np.hypot(*(self.target - self.position)))
        self.steps += 1
        if self.steps % MOVE_EVERY == 0:
            self.target = self.np_random.uniform(-1, 1, 2)
        return self._observation(), -distance, False, False, {}

    def _observation(self) -> np.ndarray:
        seen = (self.position, self.velocity, self.target - self.position)
        return np.concatenate(seen).astype(np.float32)


def braking(observations: np.ndarray, stiffness: float = 3.0, damping: float = 3.0) -> np.ndarray:
    """Actions [B, 2] of a spring to the target with a damper, for observations [B, 6]."""
    pull = stiffness * observations[:, 4:] - damping * observations[:, 2:4]
    return np.clip(pull / MAX_FORCE, -1, 1)
