"""Evaluation in environments of its own, by the most likely actions or by sampled ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch

from lmpg.gym.environments.agent import Agent
from lmpg.gym.environments.checks import require_finite
from lmpg.gym.environments.make import make_envs
from lmpg.gym.environments.settings import EnvSettings

MAX_EPISODE_STEPS = 10_000
"""Where an episode is cut that the environment itself would never end."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Episodes:
    """Undiscounted returns and lengths of episodes, [episodes] each."""

    returns: np.ndarray
    lengths: np.ndarray


def play(
    agent: Agent,
    settings: EnvSettings,
    num_episodes: int,
    seed: int,
    generator: torch.Generator | None = None,
) -> Episodes:
    """Plays `num_episodes`, the first episode of each of as many environments.

    The first of each, so that long and short episodes count alike. generator: samples actions;
    None takes the most likely ones. Where each environment is a process of its own, only
    env.num_envs of them are played at once.
    """
    at_once = settings.num_envs if settings.vectorization == "async" else num_episodes
    parts = []
    for start in range(0, num_episodes, at_once):
        size = min(at_once, num_episodes - start)
        parts.append(_first_episodes(agent, settings, size, seed + start, generator))
    return Episodes(
        np.concatenate([part.returns for part in parts]),
        np.concatenate([part.lengths for part in parts]),
    )


def _first_episodes(
    agent: Agent,
    settings: EnvSettings,
    num_episodes: int,
    seed: int,
    generator: torch.Generator | None,
) -> Episodes:
    envs = make_envs(settings, num_episodes)
    try:
        observations, actions = agent.interface(
            envs.single_observation_space, envs.single_action_space, settings.id
        )
        raw, _ = envs.reset(seed=seed)
        alive = np.ones(num_episodes, dtype=bool)
        returns, lengths = np.zeros(num_episodes), np.zeros(num_episodes, dtype=np.int64)
        while alive.any() and lengths.max() < MAX_EPISODE_STEPS:
            noise = None if generator is None else agent.noise(1, num_episodes, generator)[0]
            acts = agent.act(observations.features(raw), noise)
            raw, rewards, terminated, truncated, _ = envs.step(actions.for_env(acts))
            require_finite(settings.id, rewards, "it pays")
            returns += rewards * alive
            lengths += alive
            alive &= ~(terminated | truncated)
    finally:
        envs.close()
    if alive.any():
        _log.warning("%d evaluation episodes were cut at %d steps", alive.sum(), MAX_EPISODE_STEPS)
    return Episodes(returns, lengths)
