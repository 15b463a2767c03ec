"""Gymnasium's spaces as what a small network reads (features) and writes (actions)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium import Space, spaces

from lmpg.models.mlp import ActionSpec
from lmpg.sections import UserError


@dataclass(frozen=True)
class Observations:
    """Box observations are flattened, Discrete ones become one-hot; float32 either way."""

    size: int
    one_hot_start: int | None = None

    @classmethod
    def of(cls, space: Space, env_id: str) -> Observations:
        """The features of `space`; spaces that a network cannot simply read are refused."""
        if isinstance(space, spaces.Discrete):
            return cls(int(space.n), int(space.start))
        if isinstance(space, spaces.Box):
            return cls(int(np.prod(space.shape)))
        raise UserError(
            f"env.id = {env_id}: its observations are {space}, expected Box (flattened) or "
            "Discrete (one-hot). Wrap the environment, e.g. with gymnasium.wrappers."
            "FlattenObservation, register the result and give its id"
        )

    def features(self, raw: np.ndarray) -> np.ndarray:
        """A fresh float32 array [B, size]: environments may overwrite theirs."""
        if self.one_hot_start is None:
            return np.array(raw, dtype=np.float32).reshape(len(raw), self.size)
        return np.eye(self.size, dtype=np.float32)[np.asarray(raw) - self.one_hot_start]


@dataclass(frozen=True)
class Actions:
    """Between the policy's actions and the environment's."""

    spec: ActionSpec
    space: spaces.Discrete | spaces.Box

    @classmethod
    def of(cls, space: Space, env_id: str) -> Actions:
        """The distribution that fits `space`; others than Discrete and Box are refused."""
        if isinstance(space, spaces.Discrete):
            return cls(ActionSpec("discrete", int(space.n)), space)
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            return cls(ActionSpec("continuous", int(np.prod(space.shape))), space)
        raise UserError(
            f"env.id = {env_id}: its actions are {space}, expected Discrete or a Box of floats. "
            "Wrap the environment so that it has one of these, register it and give its id"
        )

    def for_env(self, actions: np.ndarray) -> np.ndarray:
        """As the environment takes them: shifted to its start, or clipped to its bounds."""
        if isinstance(self.space, spaces.Box):
            shaped = actions.reshape(len(actions), *self.space.shape)
            clipped = np.clip(shaped, self.space.low, self.space.high)
            return clipped.astype(self.space.dtype, copy=False)
        return actions + self.space.start if self.space.start else actions
