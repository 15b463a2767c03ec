"""Environments that can be put back where they were, bit for bit.

A native vector environment saves its arrays and its random generator. Any other saves, per copy,
the generator as it was at the start of the episode and the actions since, and replays them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import Space
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

Snapshot = dict[str, Any]


class Rewindable(gymnasium.Wrapper):
    """An environment that keeps the start of its episode and every action since, for replay."""

    def __init__(self, env: gymnasium.Env, index: int) -> None:
        super().__init__(env)
        self.index = index
        self.start: Snapshot = {}
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """As the environment's; notes the seed, or the generator that reset will draw from."""
        if seed is not None:
            self.start = {"seed": seed}
        else:
            self.start = {"rng": _rng_state(self.unwrapped.np_random)}
        self.actions = []
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        """As the environment's; keeps a copy of the action, and one of an episode's last
        observation, which a reset may write over before it was seen."""
        self.actions.append(np.array(action))
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            observation = copy.deepcopy(observation)
        return observation, reward, terminated, truncated, info

    def snapshot(self) -> Snapshot:
        """Start of the episode and its actions, from which `rewind` returns to this state."""
        actions = np.stack(self.actions) if self.actions else np.zeros(0, dtype=np.float32)
        return {**self.start, "actions": actions}

    def rewind(self, snapshots: list[Snapshot]) -> Any:
        """Replay this copy's snapshot (of all copies'); the observation that it ends at."""
        saved = snapshots[self.index]
        if "rng" in saved:
            _set_rng_state(self.unwrapped.np_random, saved["rng"])
        observation, _ = self.reset(seed=saved.get("seed"))
        for action in saved["actions"]:
            observation, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:  # it did not, so this is another course of events
                return self.reset()[0]
        return observation


def save_envs(envs: VectorEnv) -> Snapshot:
    """Tensors and JSON values from which `load_envs` restores `envs`.

    `unknown` names what a native environment holds beside arrays and numbers; with any of it the
    environment cannot be restored.
    """
    if isinstance(envs, SyncVectorEnv | AsyncVectorEnv):
        return {"copies": [_to_tensors(s) for s in envs.call("snapshot")], "unknown": []}
    return _save_native(envs.unwrapped)


def load_envs(envs: VectorEnv, state: Snapshot) -> Sequence[Any] | None:
    """Put `envs`, which were reset before, where `state` was saved.

    Returns the raw observation that each replay ended at, for comparison; None from a native one.
    """
    if isinstance(envs, SyncVectorEnv | AsyncVectorEnv):
        return envs.call("rewind", [_to_arrays(s) for s in state["copies"]])
    _load_native(envs.unwrapped, state)
    return None


_PLAIN = (type(None), bool, int, float, str, Space, EnvSpec, dict, tuple)


def _save_native(envs: VectorEnv) -> Snapshot:
    held = vars(envs)
    known = (*_PLAIN, np.ndarray, np.number, np.random.Generator)
    return {
        "arrays": _to_tensors({k: v for k, v in held.items() if isinstance(v, np.ndarray)}),
        "numbers": {k: v for k, v in held.items() if isinstance(v, bool | int | float)},
        "rng": _rng_state(envs.np_random),
        "unknown": [k for k, v in held.items() if not isinstance(v, known)],
    }


def _load_native(envs: VectorEnv, state: Snapshot) -> None:
    for name, value in {**_to_arrays(state["arrays"]), **state["numbers"]}.items():
        setattr(envs, name, value)
    _set_rng_state(envs.np_random, state["rng"])


def _rng_state(rng: np.random.Generator) -> Snapshot:
    return _listed(rng.bit_generator.state)


def _set_rng_state(rng: np.random.Generator, state: Snapshot) -> None:
    rng.bit_generator.state = state


def _listed(value: Any) -> Any:
    """Arrays inside a generator's state as lists of ints, which JSON holds exactly."""
    if isinstance(value, dict):
        return {k: _listed(v) for k, v in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _to_tensors(values: Snapshot) -> Snapshot:
    return {
        k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in values.items()
    }


def _to_arrays(values: Snapshot) -> Snapshot:
    return {k: v.numpy().copy() if torch.is_tensor(v) else v for k, v in values.items()}
