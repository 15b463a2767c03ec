"""Finite Markov decision processes: as arrays to calculate with, as environments to act in."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import gymnasium
import numpy as np
from gymnasium import spaces


@dataclass(frozen=True)
class FiniteMDP:
    """S states, A actions, and O ≤ S observations where some states look alike.

    P_SAS: P(s' | s, a); what a row lacks of 1 is the probability that the episode ends there.
    r_SA: expected reward. start_S: distribution of the first state. gamma: discount in [0, 1].
    seen_S: which of the observations 0 … O − 1 a state shows; by default each its own.
    """

    P_SAS: np.ndarray
    r_SA: np.ndarray
    start_S: np.ndarray
    gamma: float
    seen_S: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        S, A = self.r_SA.shape
        if self.seen_S is None:
            object.__setattr__(self, "seen_S", np.arange(S))
        if self.P_SAS.shape != (S, A, S) or self.start_S.shape != (S,) or len(self.seen_S) != S:
            raise ValueError(
                f"r_SA has shape {(S, A)}, P_SAS {self.P_SAS.shape}: expected [S, A, S]"
            )
        if (self.P_SAS < 0).any() or (self.P_SAS.sum(-1) > 1 + 1e-9).any():
            raise ValueError("P_SAS[s, a] must hold probabilities that sum to at most 1")
        if abs(self.start_S.sum() - 1) > 1e-9:
            raise ValueError(f"start_S sums to {self.start_S.sum()}, expected 1")

    @property
    def num_observations(self) -> int:
        """O."""
        return int(self.seen_S.max()) + 1

    def with_horizon(self, horizon: int) -> FiniteMDP:
        """The same, ended after `horizon` steps: state t·S + s is s at time t and looks like s.

        Time is part of the state, so that values, visits and gradients of an episodic task come
        out of the formulas of the stationary one.
        """
        S, A = self.r_SA.shape
        P = np.zeros((horizon, S, A, horizon, S))
        for t in range(horizon - 1):
            P[t, :, :, t + 1] = self.P_SAS
        start = np.zeros((horizon, S))
        start[0] = self.start_S
        return FiniteMDP(
            P.reshape(horizon * S, A, horizon * S),
            np.tile(self.r_SA, (horizon, 1)),
            start.reshape(-1),
            self.gamma,
            np.tile(self.seen_S, horizon),
        )


def random_mdp(S: int, A: int, gamma: float, rng: np.random.Generator) -> FiniteMDP:
    """Transitions and start from flat Dirichlets, rewards from N(0, 1); it never ends."""
    return FiniteMDP(
        rng.dirichlet(np.ones(S), size=(S, A)),
        rng.standard_normal((S, A)),
        rng.dirichlet(np.ones(S)),
        gamma,
    )


class FiniteEnv(gymnasium.Env):
    """Acts out a `FiniteMDP`: integers in and out, the reward is r_SA itself."""

    def __init__(self, mdp: FiniteMDP) -> None:
        self.mdp = mdp
        self.observation_space = spaces.Discrete(mdp.num_observations)
        self.action_space = spaces.Discrete(mdp.r_SA.shape[1])
        self.state = 0
        self._end = len(mdp.start_S)  # where a draw falls that ends the episode
        self._start = _cumulative(mdp.start_S)
        self._next = _cumulative(mdp.P_SAS)
        self._rewards = mdp.r_SA.tolist()
        self._seen = mdp.seen_S.tolist()

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """A first state from `start_S`."""
        super().reset(seed=seed)
        self.state = bisect_right(self._start, self.np_random.random())
        return self._seen[self.state], {}

    def step(self, action):
        """One transition; after an end the observation is that of the last state."""
        action = int(action)
        reward = self._rewards[self.state][action]
        state = bisect_right(self._next[self.state][action], self.np_random.random())
        if terminated := state == self._end:
            return self._seen[self.state], reward, terminated, False, {}
        self.state = state
        return self._seen[state], reward, terminated, False, {}


def _cumulative(p: np.ndarray) -> list:
    """Running sums as lists, where a sum of 1 up to rounding is above every uniform."""
    sums = p.cumsum(-1)
    return np.where(sums > 1 - 1e-12, 2.0, sums).tolist()
