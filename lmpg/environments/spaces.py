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
    """Between the policy's actions and the environment's.

    squash: the policy's actions are brought into the bounds by tanh, instead of cut there.
    """

    spec: ActionSpec
    space: spaces.Discrete | spaces.MultiDiscrete | spaces.Box
    squash: bool = False

    @classmethod
    def of(cls, space: Space, env_id: str, squash: bool) -> Actions:
        """The distribution that fits `space`; others than Discrete, MultiDiscrete and Box are
        refused, and those without bounds where actions are to be squashed into them."""
        if squash and not (isinstance(space, spaces.Box) and space.is_bounded()):
            raise UserError(
                f"policy.squash brings actions into their bounds, but those of env.id = {env_id} "
                f"are {space}. Leave policy.squash out"
            )
        if isinstance(space, spaces.Discrete):
            return cls(ActionSpec("discrete", int(space.n)), space)
        if isinstance(space, spaces.MultiDiscrete):
            choices = tuple(int(n) for n in space.nvec.flat)
            return cls(ActionSpec("multi-discrete", len(choices), choices), space)
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            return cls(ActionSpec("continuous", int(np.prod(space.shape))), space, squash)
        raise UserError(
            f"env.id = {env_id}: its actions are {space}, expected Discrete, MultiDiscrete or a "
            "Box of floats. Wrap the environment so that it has one of these, register it and give "
            "its id"
        )

    def for_env(self, actions: np.ndarray) -> np.ndarray:
        """As the environment takes them: shifted to its start, or brought into its bounds."""
        if isinstance(self.space, spaces.Discrete):
            return actions + self.space.start if self.space.start else actions
        shaped = actions.reshape(len(actions), *self.space.shape)
        if isinstance(self.space, spaces.MultiDiscrete):
            return shaped + self.space.start
        low, high = self.space.low, self.space.high
        if self.squash:
            shaped = low + (np.tanh(shaped) + 1) / 2 * (high - low)
        return np.minimum(np.maximum(shaped, low), high).astype(self.space.dtype, copy=False)
