"""Environments that can be put back where they were, bit for bit.

A native vector environment saves its arrays and its random generator. Any other saves, per copy,
the generator as it was at the start of an episode and the actions since, and replays them; where
that ends elsewhere, once more with what the environment remembered then of earlier episodes.
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
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import seeding
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from lmpg.gym.environments.checks import (
    FAILURES,
    flag,
    number,
    raised,
    require_methods,
    require_reset,
    require_step,
    say_bounds,
)
from lmpg.gym.environments.memory import listed, put_back, remembered, same
from lmpg.settings.said_once import say_once
from lmpg.settings.section import UserError

Snapshot = dict[str, Any]

LONGEST_REPLAY = 100_000
"""Actions of an episode that are kept for a replay; a longer one is not put back."""

FEW_STEPS = 100
"""As long as a replay has no more, it may hold several episodes: to note a start takes as long as
some steps."""


class Rewindable(gymnasium.Wrapper):
    """An environment that keeps the start of an episode and every action since, for replay, and
    whose mistakes end in an error that names `env_id`."""

    def __init__(self, env: gymnasium.Env, index: int, env_id: str) -> None:
        require_methods(env, env_id)
        super().__init__(env)
        self.index = index
        self.env_id = env_id
        self.start: Snapshot = {}
        self.actions: list[np.ndarray] | None = []
        self.paid = 0.0
        self._seen = env.observation_space  # looked up once: wrappers ask each other
        self._shape = self._seen.shape if isinstance(self._seen, Box) else None
        one_of = self._seen if isinstance(self._seen, Discrete) else None
        self._choices = range(int(one_of.start), int(one_of.start + one_of.n)) if one_of else ()
        self._stepped = self._ended = False

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """As the environment's; notes what a replay starts from."""
        if seed is not None and self.unwrapped._np_random is None:
            self._seed(seed)  # else its first draw would be seeded by nobody if reset forgets to
        replayable = self._ended and self.actions is not None
        if seed is not None or not replayable or len(self.actions or ()) > FEW_STEPS:
            self._start(seed)
        self._ended = False
        try:
            found = self.env.reset(seed=seed, options=options)
        except FAILURES as error:
            raise self._broken(error, "reset", seed=seed, options=options) from error
        if not (self._stepped and len(found) == 2 and self._is_usual(found[0])):
            require_reset(self.env_id, self._seen, found)
        if seed is not None:
            say_bounds(self.env_id, self._seen, found[0])
        return found

    def step(self, action):
        """As the environment's; keeps a copy of the action, and one of an episode's last
        observation, which a reset may write over before it was seen."""
        try:
            found = self.env.step(action)
            observation, reward, terminated, truncated, info = found
        except FAILURES as error:
            raise self._broken(error, "step", action) from error
        if not (self._stepped and type(info) is dict and self._is_usual(observation)):
            require_step(self.env_id, self._seen, found)
        if not isinstance(reward, float):
            reward = number(self.env_id, reward)
        if type(terminated) is not bool or type(truncated) is not bool:
            terminated = flag(self.env_id, "terminated", terminated)
            truncated = flag(self.env_id, "truncated", truncated)
        if not self._stepped:
            say_bounds(self.env_id, self._seen, observation)
            self._stepped = True
        self.paid += reward
        self._keep(action)
        if terminated or truncated:
            self._ended = True
            observation = copy.deepcopy(observation)
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """As the environment's; an error there costs nothing that was learned."""
        try:
            self.env.close()
        except FAILURES as error:
            say_once(str(raised(self.env_id, "close()", error)))

    def _is_usual(self, observation: Any) -> bool:
        """Whether an observation fits at a glance; what doesn't is looked at closely."""
        if self._shape is not None:
            return type(observation) is np.ndarray and observation.shape == self._shape
        return type(observation) in (int, np.int64) and observation in self._choices

    def _broken(self, error: BaseException, method: str, *args: Any, **kwargs: Any) -> UserError:
        """The error to raise instead of one that came from the environment, or from a wrapper
        that could not unpack what the environment returned."""
        try:
            found = getattr(self.unwrapped, method)(*args, **kwargs)
            require = require_reset if method == "reset" else require_step
            require(self.env_id, self.unwrapped.observation_space, found)
        except UserError as mistake:
            return mistake
        except FAILURES:
            pass
        return raised(self.env_id, f"{method}()", error)

    def _keep(self, action: Any) -> None:
        if self.actions is None:
            return
        if len(self.actions) < LONGEST_REPLAY:
            self.actions.append(np.array(action))
            return
        self.actions = None
        say_once(
            f"env.id = {self.env_id}: an episode has more than {LONGEST_REPLAY:,} steps, so a "
            "resumed run starts it anew and is not exact. An end (terminated, truncated) or "
            "register(…, max_episode_steps=…) would mend that"
        )

    def _start(self, seed: int | None) -> None:
        """Note the seed, or the generator that reset will draw from, and what is remembered."""
        self.start = {"memory": remembered(self.env)}
        if seed is not None:
            self.start["seed"] = seed
        else:
            self.start["rng"] = listed(self.unwrapped.np_random.bit_generator.state)
        self.actions, self.paid = [], 0.0

    def _seed(self, seed: int) -> None:
        inner = self.unwrapped
        inner._np_random, inner._np_random_seed = seeding.np_random(seed)

    def snapshot(self) -> Snapshot:
        """Start of an episode and the actions since, from which `rewind` returns to this state."""
        if self.actions is None:
            return {"too_long": True}
        actions = np.stack(self.actions) if self.actions else np.zeros(0, dtype=np.float32)
        now = {"now": remembered(self.env), "paid": self.paid}
        return {**self.start, **now, "actions": actions}

    def rewind(self, snapshots: list[Snapshot]) -> tuple[Any, bool]:
        """Replay this copy's snapshot (of all copies'); the observation that it ends at, and
        whether it was paid the same."""
        saved = snapshots[self.index]
        if "too_long" in saved:
            return self.reset()[0], False
        found = self._replayed(saved)
        if "now" in saved and not same(remembered(self.env), saved["now"]):
            put_back(self.env, saved["memory"])
            found = self._replayed(saved)
            put_back(self.env, saved["now"])
        if "memory" in saved:  # not what this process held before the replay
            self.start["memory"] = saved["memory"]
        return found

    def _replayed(self, saved: Snapshot) -> tuple[Any, bool]:
        if "rng" in saved:
            _set_rng_state(self.unwrapped.np_random, saved["rng"])
        else:
            self._seed(saved["seed"])
        self._ended = False  # a replay starts here
        observation, _ = self.reset(seed=saved.get("seed"))
        for action in saved["actions"]:
            observation, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:
                observation, _ = self.reset()
        return observation, saved.get("paid", self.paid) == self.paid


def save_envs(envs: VectorEnv) -> Snapshot:
    """Tensors and JSON values from which `load_envs` restores `envs`.

    `unknown` names what a native environment holds beside arrays and numbers; with any of it the
    environment cannot be restored.
    """
    if isinstance(envs, SyncVectorEnv | AsyncVectorEnv):
        return {"copies": [_to_tensors(s) for s in envs.call("snapshot")], "unknown": []}
    return _save_native(envs.unwrapped)


def load_envs(envs: VectorEnv, state: Snapshot) -> Sequence[tuple[Any, bool]] | None:
    """Put `envs`, which were reset before, where `state` was saved.

    Returns the raw observation that each replay ended at, for comparison, and whether it was paid
    the same; None from a native one.
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
        "rng": listed(envs.np_random.bit_generator.state),
        "unknown": [k for k, v in held.items() if not isinstance(v, known)],
    }


def _load_native(envs: VectorEnv, state: Snapshot) -> None:
    for name, value in {**_to_arrays(state["arrays"]), **state["numbers"]}.items():
        setattr(envs, name, value)
    _set_rng_state(envs.np_random, state["rng"])


def _set_rng_state(rng: np.random.Generator, state: Snapshot) -> None:
    rng.bit_generator.state = state


def _to_tensors(values: Snapshot) -> Snapshot:
    return {
        k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in values.items()
    }


def _to_arrays(values: Snapshot) -> Snapshot:
    return {k: v.numpy().copy() if torch.is_tensor(v) else v for k, v in values.items()}
