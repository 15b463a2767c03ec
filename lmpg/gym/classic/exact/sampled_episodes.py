"""Many episodes of a finite problem at once, to estimate with what can also be calculated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmpg.gym.environments.problems.finite import FiniteMDP


@dataclass(frozen=True)
class SampledEpisodes:
    """N episodes, padded to T steps; everything is 0 after an episode's end.

    states_NT, next_states_NT, actions_NT: int64. rewards_NT: float64. mask_NT: steps that took
    place. ended_NT: the last of each episode.
    """

    states_NT: Tensor
    actions_NT: Tensor
    rewards_NT: Tensor
    next_states_NT: Tensor
    mask_NT: Tensor
    ended_NT: Tensor


def sampled_episodes(
    mdp: FiniteMDP,
    pi_SA: np.ndarray,
    num_episodes: int,
    horizon: int,
    rng: np.random.Generator,
    group_size: int = 1,
) -> SampledEpisodes:
    """Episodes of `pi_SA`, or each of its own of pi_NSA; all must be over after `horizon` steps.

    group_size: how many in a row share a drawn first state, as responses share a prompt.
    """
    end, everyone = len(mdp.start_S), np.arange(num_episodes)
    pi_NSA = np.broadcast_to(pi_SA, (num_episodes, *mdp.r_SA.shape))
    starts_PS = np.tile(mdp.start_S.cumsum(), (num_episodes // group_size, 1))
    states_N = _drawn(starts_PS, rng).repeat(group_size)
    alive_N = np.ones(num_episodes, dtype=bool)
    columns = []
    for _ in range(horizon):
        actions_N = _drawn(pi_NSA[everyone, states_N].cumsum(1), rng)
        rewards_N = mdp.r_SA[states_N, actions_N]
        next_N = _drawn(mdp.P_SAS.cumsum(2)[states_N, actions_N], rng)
        ended_N = next_N == end
        after_N = np.where(ended_N, 0, next_N)
        step = (states_N, actions_N, rewards_N, after_N, alive_N, ended_N)
        columns.append([column * alive_N for column in step])
        alive_N, states_N = alive_N & ~ended_N, after_N
    if alive_N.any():
        raise ValueError(f"{alive_N.sum()} episodes go on after {horizon} steps; see with_horizon")
    return SampledEpisodes(
        *(torch.from_numpy(np.stack(column, axis=1)) for column in zip(*columns))
    )


def _drawn(cumulative_NK: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Per row the first of K outcomes whose running sum exceeds a uniform; K where none does."""
    return (cumulative_NK <= rng.random((len(cumulative_NK), 1)) * (1 - 1e-12)).sum(1)
