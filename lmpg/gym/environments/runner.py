"""Steps a policy in a vector environment, and collects what happens as rollouts.

Episodes go on from one rollout to the next. In gymnasium's NEXT_STEP mode the step after an end
only resets: it is no transition and is masked out everywhere, so a rollout may need a few more
columns there, and counts of steps are of transitions, never of columns.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from lmpg.gym.environments.experience import Column, rollout_of
from lmpg.gym.environments.normalisation import Normaliser
from lmpg.gym.environments.rewind import load_envs, save_envs
from lmpg.gym.environments.spaces import Actions, Observations
from lmpg.types import Evaluation, Rollout

RECENT_EPISODES = 100


class ActingPolicy(Protocol):
    """The policy interface of the runner; `lmpg.gym.networks.mlp_policy.MLPPolicy` has it."""

    squash: bool

    def noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> np.ndarray:
        """The random numbers that acting uses, [steps, envs, …]."""
        ...

    def act(self, features: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """One action per row; the most likely one without noise."""
        ...

    def evaluate(self, inputs: dict[str, Tensor]) -> Evaluation:
        """Log-probs, entropy and values of observed steps."""
        ...

    def values(self, observations: Tensor) -> Tensor:
        """V of observations."""
        ...


class Runner:
    """Holds the environments, their last observations, and returns and lengths of open episodes.

    normaliser: scales the observations and rewards that the policy gets.
    squash: as in `Actions`.
    """

    def __init__(self, envs: VectorEnv, env_id: str, seed: int, squash: bool = False) -> None:
        self.envs = envs
        self.normaliser = Normaliser()
        self.num_envs = envs.num_envs
        self.observations = Observations.of(envs.single_observation_space, env_id)
        self.actions = Actions.of(envs.single_action_space, env_id, squash)
        self.mode = AutoresetMode(envs.metadata["autoreset_mode"])
        self.num_steps = self.num_episodes = 0
        self.episodes: deque[tuple[float, int]] = deque(maxlen=RECENT_EPISODES)
        raw, _ = envs.reset(seed=seed)
        self._features = self.observations.features(raw)
        self._resetting = np.zeros(self.num_envs, dtype=bool)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)

    def collect(
        self, policy: ActingPolicy, until: int, generator: torch.Generator, exact: bool = False
    ) -> Rollout:
        """Step until `num_steps` reaches `until`.

        All copies step together, so it may pass `until` by less than one step each; with `exact`
        the surplus is masked out, and not counted.
        """
        columns: list[Column] = []
        noise = self._noise(policy, until, generator)
        while self.num_steps < until:
            if len(columns) == len(noise):  # resetting steps made the rollout longer
                noise = np.concatenate([noise, self._noise(policy, until, generator)])
            column = self._step(policy, noise[len(columns)])
            if exact:
                column.cut_to(until - self.num_steps)
            self.num_steps += column.num_transitions
            columns.append(column)
        return rollout_of(columns, self.normaliser.normalised(self._features), policy)

    @property
    def features(self) -> np.ndarray:
        """The normalised observations that the policy acts on next, [B, F]."""
        return self.normaliser.normalised(self._features)

    def step(self, policy: ActingPolicy, noise: np.ndarray | None) -> Column:
        """One step of all copies, for methods that learn after each; `noise` as in `act`."""
        column = self._step(policy, noise)
        self.num_steps += column.num_transitions
        return column

    def _noise(self, policy: ActingPolicy, until: int, generator: torch.Generator) -> np.ndarray:
        num_columns = -(-(until - self.num_steps) // self.num_envs)
        return policy.noise(num_columns, self.num_envs, generator)

    def _step(self, policy: ActingPolicy, noise: np.ndarray | None) -> Column:
        acted = ~self._resetting
        features = self.normaliser.update_and_normalise(self._features, acted)
        actions = policy.act(features, noise)
        raw, rewards, terminated, truncated, info = self.envs.step(self.actions.for_env(actions))
        if self.mode is AutoresetMode.NEXT_STEP:
            rewards, terminated, truncated = (
                rewards * acted,
                terminated & acted,
                truncated & acted,
            )
        ended = terminated | truncated
        scaled = self.normaliser.scaled_rewards(rewards, acted, ended)
        times = self._lengths.copy()
        column = Column(features, actions, scaled, acted, terminated, ended, times)
        self._features = self.observations.features(raw)
        self._returns += rewards
        self._lengths += acted
        if self.mode is AutoresetMode.NEXT_STEP:
            self._resetting = ended
        if ended.any():
            self._count(ended)
            column.last = self.normaliser.normalised(self._last_observations(ended, info))
        return column

    def _last_observations(self, ended: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Final observations of the episodes that ended; resets these copies where gymnasium leaves
        that to us."""
        if self.mode is AutoresetMode.SAME_STEP:
            last = [info["final_obs"][i] for i in np.flatnonzero(ended)]
            return self.observations.features_of_each(last)
        last_features = self._features[ended]
        if self.mode is AutoresetMode.DISABLED:
            raw, _ = self.envs.reset(options={"reset_mask": ended})
            self._features = self.observations.features(raw)
        return last_features

    def _count(self, ended: np.ndarray) -> None:
        """Record return and length of the episodes that ended."""
        for i in np.flatnonzero(ended):
            self.num_episodes += 1
            self.episodes.append((float(self._returns[i]), int(self._lengths[i])))
            self._returns[i] = self._lengths[i] = 0

    def metrics(self) -> dict[str, float]:
        """Mean return and length of the last episodes (100 at most) that ended in training."""
        if not self.episodes:
            return {}
        returns, lengths = zip(*self.episodes)
        return {
            "episode/return_mean": float(np.mean(returns)),
            "episode/length_mean": float(np.mean(lengths)),
        }

    def state(self) -> dict[str, Any]:
        """Tensors and JSON values with which `load_state` goes on bit for bit."""
        return {
            "envs": save_envs(self.envs),
            "features": torch.from_numpy(self._features.copy()),
            "resetting": torch.from_numpy(self._resetting.copy()),
            "returns": torch.from_numpy(self._returns.copy()),
            "lengths": torch.from_numpy(self._lengths.copy()),
            "episodes": [list(episode) for episode in self.episodes],
            "num_steps": self.num_steps,
            "num_episodes": self.num_episodes,
            "normaliser": self.normaliser.state(),
        }

    def load_state(self, state: dict[str, Any]) -> bool:
        """Go on where `state` was taken. False where the environments could not be brought back
        exactly; their copies that differ go on from where they are.
        """
        saved = state["features"].numpy().copy()
        if state["envs"]["unknown"]:
            now, same = self._features, np.zeros(self.num_envs, dtype=bool)
        else:
            raw = load_envs(self.envs, state["envs"])
            now = saved if raw is None else self.observations.features_of_each(raw)
            same = (now == saved).all(1)
        self._features = now
        self._resetting = state["resetting"].numpy() & same
        self._returns = state["returns"].numpy() * same
        self._lengths = state["lengths"].numpy() * same
        self.episodes = deque(((r, n) for r, n in state["episodes"]), maxlen=RECENT_EPISODES)
        self.num_steps, self.num_episodes = state["num_steps"], state["num_episodes"]
        self.normaliser.load_state(state["normaliser"])
        return bool(same.all())

    def close(self) -> None:
        """End the environments (and their processes)."""
        self.envs.close()
