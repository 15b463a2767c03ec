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
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from torch import Tensor

from lmpg.gym.environments.checks import FAILURES, raised, require_finite
from lmpg.gym.environments.experience import Column, rollout_of
from lmpg.gym.environments.normalisation import Normaliser
from lmpg.gym.environments.rewind import load_envs, save_envs
from lmpg.gym.environments.spaces import Actions, Observations
from lmpg.settings.said_once import say_once
from lmpg.settings.section import RunStopped, UserError
from lmpg.types import Evaluation, Rollout

RECENT_EPISODES = 100
FIRST_ACTIONS = 500
"""Of methods that learn after each step: so many are looked at, whether they are cut."""


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

    normaliser: scales the observations and rewards that the policy gets. num_uncounted: steps that
    were taken but not learned from, as copies step together and a run ends at an exact number.
    squash: as in `Actions`.
    """

    def __init__(self, envs: VectorEnv, env_id: str, seed: int, squash: bool = False) -> None:
        self.envs = envs
        self.env_id = env_id
        self.normaliser = Normaliser()
        self.num_envs = envs.num_envs
        self.observations = Observations.of(envs.single_observation_space, env_id)
        self.actions = Actions.of(envs.single_action_space, env_id, squash)
        self.mode = AutoresetMode(envs.metadata["autoreset_mode"])
        self.num_steps = self.num_episodes = 0
        self.num_uncounted = 0
        self._first_actions: list[np.ndarray] = []
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
                self.num_uncounted += column.cut_to(until - self.num_steps)
            self.num_steps += column.num_transitions
            columns.append(column)
        self._say_if_all_are_cut([c.actions for c in columns])
        return rollout_of(columns, self.normaliser.normalised(self._features), policy)

    @property
    def features(self) -> np.ndarray:
        """The normalised observations that the policy acts on next, [B, F]."""
        return self.normaliser.normalised(self._features)

    def step(self, policy: ActingPolicy, noise: np.ndarray | None) -> Column:
        """One step of all copies, for methods that learn after each; `noise` as in `act`."""
        column = self._step(policy, noise)
        self.num_steps += column.num_transitions
        if len(self._first_actions) < FIRST_ACTIONS:
            self._first_actions.append(column.actions)
            if len(self._first_actions) == FIRST_ACTIONS:
                self._say_if_all_are_cut(self._first_actions)
        return column

    def _noise(self, policy: ActingPolicy, until: int, generator: torch.Generator) -> np.ndarray:
        num_columns = -(-(until - self.num_steps) // self.num_envs)
        return policy.noise(num_columns, self.num_envs, generator)

    def _step(self, policy: ActingPolicy, noise: np.ndarray | None) -> Column:
        acted = ~self._resetting
        features = self.normaliser.update_and_normalise(self._features, acted)
        actions = policy.act(features, noise)
        raw, rewards, terminated, truncated, info = self._stepped(actions)
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
        self._features = raw
        self._returns += rewards
        self._lengths += acted
        if self.mode is AutoresetMode.NEXT_STEP:
            self._resetting = ended
        if ended.any():
            self._count(ended)
            column.last = self.normaliser.normalised(self._last_observations(ended, info))
        return column

    def _stepped(self, actions: np.ndarray) -> tuple[Any, ...]:
        """What the environments answer, observations as features; RunStopped where that cannot be
        learned from."""
        try:
            raw, *rest = self.envs.step(self.actions.for_env(actions))
            require_finite(self.env_id, rest[0], "it pays")
            return self.observations.features(raw), *rest
        except UserError as error:
            wrong = error
        except FAILURES as error:
            wrong = raised(self.env_id, "step()", error)
        # workers that have failed cannot be saved
        kind = UserError if isinstance(self.envs, AsyncVectorEnv) else RunStopped
        raise kind(f"{wrong}, after {self.num_steps:,} steps") from None

    def _say_if_all_are_cut(self, actions: list[np.ndarray]) -> None:
        """Warn, once, where nearly all actions of a rollout lay beyond one bound: then each is as
        good as another."""
        dimension = self.actions.cut_off(np.concatenate(actions))
        if dimension is not None:
            squash = "try --policy.squash True, or " if self.actions.bounded else ""
            say_once(
                f"env.id = {self.env_id}: nearly every action (number {dimension}) was cut to one "
                f"bound of {self.actions.space}, and nothing is learned from these. Unless that "
                f"bound is best, {squash}let the environment scale actions around 0"
            )

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
            "num_uncounted": self.num_uncounted,
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
            found = load_envs(self.envs, state["envs"])
            now, paid = saved, np.ones(self.num_envs, dtype=bool)
            if found is not None:
                now = self.observations.features_of_each([raw for raw, _ in found])
                paid = np.array([as_before for _, as_before in found])
            same = (now == saved).all(1) & paid
        self._features = now
        self._resetting = state["resetting"].numpy() & same
        self._returns = state["returns"].numpy() * same
        self._lengths = state["lengths"].numpy() * same
        self.episodes = deque(((r, n) for r, n in state["episodes"]), maxlen=RECENT_EPISODES)
        self.num_steps, self.num_episodes = state["num_steps"], state["num_episodes"]
        self.num_uncounted = state.get("num_uncounted", 0)
        self.normaliser.load_state(state["normaliser"])
        return bool(same.all())

    def close(self) -> None:
        """End the environments (and their processes)."""
        self.envs.close()
