"""Observation spaces as features of a small network, and action spaces as its outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from lmpg.gym.environments.checks import require_finite
from lmpg.gym.networks.mlp_policy import ActionSpec
from lmpg.settings.section import UserError

NEARLY_ALL, FEW = 0.95, 32
"""Share of actions beyond one bound from which on it is said, and how many there must be."""


@dataclass(frozen=True)
class Observations:
    """An observation space as float32 features [size].

    Numbers are flattened, choices become one-hot, parts of a Dict or Tuple stand side by side.
    """

    space: Space
    size: int
    env_id: str

    @classmethod
    def of(cls, space: Space, env_id: str) -> Observations:
        """The features of `space`; spaces without a fixed number of them are refused."""
        if not _readable(space):
            raise UserError(
                f"env.id = {env_id}: its observations are {space}, expected Box, Discrete, "
                "MultiDiscrete, MultiBinary, or a Dict or Tuple of these. Wrap the environment, "
                "register the result and give its id"
            )
        size = int(spaces.flatdim(space))
        if not size:
            raise UserError(
                f"env.id = {env_id}: its observations are {space}, which hold no number. Where "
                "there is nothing to see, show a constant, such as one 0"
            )
        return cls(space, size, env_id)

    def features(self, raw: Any) -> np.ndarray:
        """Features of a batch of observations, in a fresh array [B, size], since environments may
        overwrite theirs; UserError where they are NaN or infinite."""
        found = _features(self.space, raw)
        require_finite(self.env_id, found, "it shows")
        return found

    def features_of_each(self, single: Sequence[Any]) -> np.ndarray:
        """Features of B single observations, [B, size]."""
        return self.features(batched(self.space, single))


def _readable(space: Space) -> bool:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return all(_readable(part) for _, part in _parts(space))
    numbers = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    return isinstance(space, numbers)


def _parts(space: spaces.Dict | spaces.Tuple) -> list[tuple[Any, Space]]:
    """Key and space of each."""
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    return list(enumerate(space.spaces))


def _features(space: Space, raw: Any) -> np.ndarray:
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return np.array(raw, dtype=np.float32).reshape(len(raw), math.prod(space.shape))
    if isinstance(space, spaces.Discrete):
        return _one_hot(np.asarray(raw).reshape(len(raw)) - space.start, int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        chosen = (np.asarray(raw) - space.start).reshape(len(raw), -1).T
        found = [_one_hot(c, int(n)) for n, c in zip(space.nvec.flat, chosen)]
    else:
        found = [_features(part, raw[key]) for key, part in _parts(space)]  # type: ignore[arg-type]
    return np.concatenate(found, axis=1)


def _one_hot(chosen: np.ndarray, count: int) -> np.ndarray:
    """Rows [B, count] with a one at each choice."""
    found = np.zeros((len(chosen), count), dtype=np.float32)
    found[np.arange(len(chosen)), chosen.astype(np.int64)] = 1
    return found


def batched(space: Space, single: Sequence[Any]) -> Any:
    """Single observations as a vector environment would give them."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return np.array(single)
    found = {key: batched(part, [x[key] for x in single]) for key, part in _parts(space)}
    return found if isinstance(space, spaces.Dict) else tuple(found.values())


def _is_bounded(space: Space) -> bool:
    return isinstance(space, spaces.Box) and space.is_bounded()


@dataclass(frozen=True)
class Actions:
    """An action space, and the map from the policy's actions to the environment's.

    squash: the policy's actions are brought into the bounds by tanh, instead of cut there.
    """

    spec: ActionSpec
    space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box
    squash: bool = False

    @classmethod
    def of(cls, space: Space, env_id: str, squash: bool) -> Actions:
        """The distribution that fits `space`; others than Discrete, MultiDiscrete, MultiBinary and
        Box are refused, and those without bounds where actions are to be squashed into them."""
        if squash and not _is_bounded(space):
            raise UserError(
                f"policy.squash brings actions into their bounds, but those of env.id = {env_id} "
                f"are {space}. Leave policy.squash out"
            )
        if not math.prod(space.shape or ()):
            raise UserError(f"env.id = {env_id}: its actions are {space}, which leave no choice")
        if isinstance(space, spaces.Discrete):
            return cls(ActionSpec("discrete", int(space.n)), space)
        if isinstance(space, spaces.MultiDiscrete):
            choices = tuple(int(n) for n in space.nvec.flat)
            return cls(ActionSpec("multi-discrete", len(choices), choices), space)
        if isinstance(space, spaces.MultiBinary):
            size = math.prod(space.shape)
            return cls(ActionSpec("multi-discrete", size, (2,) * size), space)
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            return cls(ActionSpec("continuous", int(np.prod(space.shape))), space, squash)
        raise UserError(
            f"env.id = {env_id}: its actions are {space}, expected Discrete, MultiDiscrete, "
            "MultiBinary or a Box of floats. Wrap the environment so that it has one of these, "
            "register it and give its id"
        )

    @property
    def bounded(self) -> bool:
        """Whether actions could be squashed into bounds."""
        return _is_bounded(self.space)

    def cut_off(self, actions: np.ndarray) -> int | None:
        """Which number of the policy's actions [N, …] nearly always lies beyond the same bound of
        the environment; None if there is none."""
        if self.squash or not isinstance(self.space, spaces.Box) or len(actions) < FEW:
            return None
        shaped = actions.reshape(len(actions), -1)
        below = (shaped < self.space.low.reshape(-1)).mean(0)
        above = (shaped > self.space.high.reshape(-1)).mean(0)
        found = np.flatnonzero(np.maximum(below, above) >= NEARLY_ALL)
        return int(found[0]) if len(found) else None

    def for_env(self, actions: np.ndarray) -> np.ndarray:
        """Actions as the environment takes them: shifted to its start, or within its bounds."""
        if isinstance(self.space, spaces.Discrete):
            return actions + self.space.start if self.space.start else actions
        shaped = actions.reshape(len(actions), *self.space.shape)
        if isinstance(self.space, spaces.MultiDiscrete):
            return shaped + self.space.start
        if isinstance(self.space, spaces.MultiBinary):
            return shaped.astype(self.space.dtype)
        low, high = self.space.low, self.space.high
        if self.squash:
            shaped = low + (np.tanh(shaped) + 1) / 2 * (high - low)
        return np.minimum(np.maximum(shaped, low), high).astype(self.space.dtype, copy=False)
