"""Policy-gradient estimators: all weight the same ∇log π, each with another credit.

Every estimate is g = Σ_t γ^t credit_t ∇log π(a_t | s_t) per episode. The functions here return the
credit, [N, T], `exact.measuring.gradients` sums it. Biased are: advantages of a wrong value
function that bootstrap from it (λ < 1, n steps), importance weights that are capped or of one step
alone, and credit over γ^t, which is what leaving γ^t out means. `V_S` is the value of the
problem's states, exact or not. `docs/policy_gradients.md` has all of them measured.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lmpg.functional.advantages import gae, n_step_advantages
from lmpg.functional.losses import RatioLevel, importance_weights
from lmpg.gym.classic.exact.sampled_episodes import SampledEpisodes


def discounts(episodes: SampledEpisodes, gamma: float) -> Tensor:
    """γ^t, [T]."""
    return gamma ** torch.arange(episodes.mask_NT.shape[1], dtype=torch.float64)


def whole_returns(episodes: SampledEpisodes, gamma: float, baseline: float) -> Tensor:
    """(R − baseline)/γ^t with the return R of the whole episode (Williams 1992).

    Over γ^t because `gradients` multiplies with it: R counts alike at every step.
    """
    gamma_T = discounts(episodes, gamma)
    returns_N1 = (gamma_T * episodes.rewards_NT).sum(1, keepdim=True)
    return (returns_N1 - baseline) / gamma_T


def returns_to_go(episodes: SampledEpisodes, gamma: float) -> Tensor:
    """Σ_{k ≥ t} γ^(k−t) r_k: an action cannot change the rewards before it."""
    nothing_S = np.zeros(int(episodes.states_NT.max()) + 1)
    return lambda_advantages(episodes, nothing_S, gamma, 1.0)


def average(credit_NT: Tensor, episodes: SampledEpisodes) -> Tensor:
    """Mean credit at step t over the episodes that reach it, [T], as a baseline.

    Each episode's own credit is in its mean, which shrinks the gradient by the factor 1 − 1/N.
    """
    return (credit_NT * episodes.mask_NT).sum(0) / episodes.mask_NT.sum(0).clamp(min=1)


def lambda_advantages(
    episodes: SampledEpisodes, V_S: np.ndarray, gamma: float, lam: float
) -> Tensor:
    """Generalised advantages, see `functional.advantages.gae`."""
    V_NT, next_NT = _values(episodes, V_S)
    e = episodes
    return gae(e.rewards_NT, V_NT, next_NT, e.ended_NT, e.ended_NT, e.mask_NT, gamma, lam)


def step_advantages(episodes: SampledEpisodes, V_S: np.ndarray, gamma: float, n: int) -> Tensor:
    """A^(n), see `functional.advantages.n_step_advantages`."""
    V_NT, next_NT = _values(episodes, V_S)
    e = episodes
    return n_step_advantages(
        e.rewards_NT, V_NT, next_NT, e.ended_NT, e.ended_NT, e.mask_NT, gamma, n
    )


def per_decision_returns(
    episodes: SampledEpisodes, log_ratios_NT: Tensor, gamma: float, cap: float | None = None
) -> Tensor:
    """Σ_{k ≥ t} γ^(k−t) w_k r_k with w_k = ∏_{i ≤ k} π/μ (Precup, Sutton & Singh 2000).

    Unbiased without cap: each reward is weighted by the ratios of the actions that led to it.
    """
    weights_NT = importance_weights(log_ratios_NT, episodes.mask_NT, "decision", cap)
    reweighted = replace(episodes, rewards_NT=weights_NT * episodes.rewards_NT)
    return returns_to_go(reweighted, gamma)


def weighted(
    credit_NT: Tensor,
    episodes: SampledEpisodes,
    log_ratios_NT: Tensor,
    level: RatioLevel,
    cap: float | None = None,
) -> Tensor:
    """Credit times the π/μ of episodes that μ acted in, see `importance_weights`.

    sequence is unbiased for returns, decision for δ with the exact V of π; token never is.
    """
    return credit_NT * importance_weights(log_ratios_NT, episodes.mask_NT, level, cap)


def log_ratios(episodes: SampledEpisodes, pi_SA: np.ndarray, mu_SA: np.ndarray) -> Tensor:
    """log π(a_t | s_t) − log μ(a_t | s_t)."""
    ratios_SA = torch.from_numpy(np.log(pi_SA) - np.log(mu_SA))
    return ratios_SA[episodes.states_NT, episodes.actions_NT]


def _values(episodes: SampledEpisodes, V_S: np.ndarray) -> tuple[Tensor, Tensor]:
    """V before and after each step."""
    values_S = torch.from_numpy(V_S)
    return values_S[episodes.states_NT], values_S[episodes.next_states_NT]
