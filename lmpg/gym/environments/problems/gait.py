"""Twelve numbers make a quadruped trot, or stumble; finite differences make it faster."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

PARAMETERS = {  # name: (value in the middle, half its range), metres, seconds, turns
    "period": (0.9, 0.5),
    "duty": (0.68, 0.22),  # share of the period that a foot is on the ground
    "stride_front": (0.12, 0.09),
    "stride_hind": (0.12, 0.09),
    "lift_front": (0.03, 0.03),
    "lift_hind": (0.03, 0.03),
    "shift_front": (-0.02, 0.06),  # of the foot's path against the hip
    "shift_hind": (-0.02, 0.06),
    "phase_right_front": (0.38, 0.3),  # of the leg against the left front one
    "phase_left_hind": (0.38, 0.3),
    "phase_right_hind": (0.12, 0.3),
    "height": (0.22, 0.05),  # of the hips
}
LEG, HALF_LENGTH, HALF_WIDTH = 0.28, 0.15, 0.08
"""Length of a leg, and where the hips are seen from the middle, in metres."""
MAX_SPEED = 1.2
"""Of a foot against its hip, in m/s."""
_PHASES = np.arange(60) / 60
_HIPS = np.array([(x, y) for x in (HALF_LENGTH, -HALF_LENGTH) for y in (HALF_WIDTH, -HALF_WIDTH)])


def speed(x: np.ndarray) -> float:
    """Metres per second that a gait walks, for twelve numbers in [−1, 1].

    Feet on the ground push the body back along their path, each with the same share of the
    weight. Speed is lost where a leg does not reach, where a foot would have to swing faster than
    it can or scuffs the ground, where the two sides push unlike, and where the feet that
    stand do not support the middle of the body.
    """
    p = {name: m + h * x[i] for i, (name, (m, h)) in enumerate(PARAMETERS.items())}
    strides = np.array([p["stride_front"]] * 2 + [p["stride_hind"]] * 2)
    shifts = np.array([p["shift_front"]] * 2 + [p["shift_hind"]] * 2)
    lifts = np.array([p["lift_front"]] * 2 + [p["lift_hind"]] * 2)
    names = ("phase_right_front", "phase_left_hind", "phase_right_hind")
    offsets = np.array([0.0, *(p[name] for name in names)])
    reach = np.sqrt(LEG**2 - p["height"] ** 2)
    strides = strides * _fades(strides / 2 + abs(shifts), reach)
    strides = strides * _fades(strides / ((1 - p["duty"]) * p["period"]), MAX_SPEED)
    phases = (_PHASES[:, None] + offsets) % 1
    standing = _rises((p["duty"] - phases) / 0.05) * _rises(phases / 0.05)  # [time, leg]
    feet_x = _HIPS[:, 0] + shifts + strides * (0.5 - phases / p["duty"])
    weight = standing / (standing.sum(1, keepdims=True) + 0.2)
    push = (weight * strides).sum(1) / (p["duty"] * p["period"])
    scuffing = (1 - standing) * np.exp(-((lifts / 0.025) ** 2))
    tilt = np.hypot((weight * feet_x).sum(1), (weight * _HIPS[:, 1]).sum(1))
    turning = abs((weight * strides * np.sign(_HIPS[:, 1])).sum(1)) / strides.mean()
    losses = 0.25 * scuffing.sum(1) + (tilt / 0.06) ** 2 + turning**2 + (max(lifts) / 0.08) ** 2
    return float((push * np.exp(-losses)).mean())


def _fades(x: np.ndarray, limit: float) -> np.ndarray:
    """1 far below the limit, falling smoothly above it."""
    return 1 / (1 + (x / limit) ** 6)


def _rises(x: np.ndarray) -> np.ndarray:
    """From 0 to 1 around x = 0."""
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


class Gait(gymnasium.Env):
    """One step is one walk with the twelve numbers of the action; it pays the `speed`, in m/s.

    After the task of Kohl & Stone (2004, "Policy gradient reinforcement learning for fast
    quadrupedal locomotion"): twelve parameters, measured speed with some noise, and differences
    between gaits as the only gradient. The middle of the ranges walks .107 m/s, gaits drawn at
    random .053; the best that long searches found is a trot with .484.
    """

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise
        self.observation_space = spaces.Discrete(1)
        self.action_space = spaces.Box(-1.0, 1.0, (len(PARAMETERS),), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """There is one observation."""
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        """Walk; the speed is measured with a standard error of `noise` m/s."""
        error = self.noise * self.np_random.standard_normal() if self.noise else 0.0
        return 0, speed(np.clip(action, -1, 1)) + error, True, False, {}
