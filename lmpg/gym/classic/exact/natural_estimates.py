"""The natural gradient from batches of episodes: with the batch's Fisher matrix, or by regression.

Both divide by what they sampled, so that small batches are biased, about as one over their size;
the exact one is `gradients.natural_gradient`. Steps count with γ^t, advantages are GAE's with the
exact V.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmpg.gym.classic.exact.comparison import HORIZON, Setting
from lmpg.gym.classic.exact.estimators import discounts, lambda_advantages
from lmpg.gym.classic.exact.sampled_episodes import SampledEpisodes, sampled_episodes

SMALLEST = 1e-8
"""Eigenvalues of F below this share of the largest are taken for 0."""


def natural_gradients(
    s: Setting, batch_size: int, num_batches: int, lam: float, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Estimates from each batch of episodes, [num_batches, O·A], by name.

    gradient: g itself. natural gradient: F⁺g with F = E_s E_{a∼π}[ψψᵀ] over the batch's states, as
    in `gym.classic.natural_policy_gradient` and `trpo`, or over those of all batches. natural
    actor-critic: the w with the least Σ γ^t (wᵀψ − A)², as in `gym.classic.natural_actor_critic`,
    times Σ γ^t per episode.
    """
    num_episodes = batch_size * num_batches
    episodes = sampled_episodes(s.mdp, s.pi_SA, num_episodes, HORIZON, rng)
    psi_NTD, pi_SA = _scores(s, episodes), torch.from_numpy(s.pi_SA)
    weights_NT = discounts(episodes, s.mdp.gamma) * episodes.mask_NT
    A_NT = lambda_advantages(episodes, s.V_S, s.mdp.gamma, lam)
    g_ND = (weights_NT * A_NT)[:, None] @ psi_NTD
    sampled_NDD = _outer(weights_NT, psi_NTD)
    expected_NDD = torch.zeros_like(sampled_NDD)
    for a in range(pi_SA.shape[1]):
        expected_NDD += _outer(weights_NT * pi_SA[episodes.states_NT, a], _scores(s, episodes, a))
    g_KD, sampled_KDD, expected_KDD = (
        x.unflatten(0, (num_batches, batch_size)).mean(1)
        for x in (g_ND[:, 0], sampled_NDD, expected_NDD)
    )
    steps = float(weights_NT.sum()) / num_episodes  # Σρ, by which F is a mean over states
    return {
        "gradient": g_KD,
        "natural gradient": _solved(expected_KDD / steps, g_KD),
        "natural gradient, F of all batches": _solved(
            (expected_KDD / steps).mean(0, keepdim=True), g_KD
        ),
        "natural actor-critic": _solved(sampled_KDD / steps, g_KD),
    }


def _scores(s: Setting, episodes: SampledEpisodes, action: int | None = None) -> Tensor:
    """ψ = ∂log π(a | s)/∂θ of the actions that were taken, or of that one, [N, T, O·A]."""
    states_NT, (num_seen, num_actions) = episodes.states_NT, s.theta_OA.shape
    actions_NT = episodes.actions_NT if action is None else torch.full_like(states_NT, action)
    taken_NTA = torch.eye(num_actions, dtype=torch.float64)[actions_NT]
    shown_NTO = torch.eye(num_seen, dtype=torch.float64)[torch.from_numpy(s.mdp.seen_S)[states_NT]]
    errors_NTA = taken_NTA - torch.from_numpy(s.pi_SA)[states_NT]
    return (shown_NTO[..., :, None] * errors_NTA[..., None, :]).flatten(-2)


def _outer(weights_NT: Tensor, psi_NTD: Tensor) -> Tensor:
    """Σ_t weight ψψᵀ per episode, [N, D, D]."""
    return (weights_NT[..., None] * psi_NTD).transpose(1, 2) @ psi_NTD


def _solved(F_KDD: Tensor, g_KD: Tensor) -> Tensor:
    inverse_KDD = torch.linalg.pinv(F_KDD, rtol=SMALLEST, hermitian=True)
    return (inverse_KDD @ g_KD[..., None])[..., 0]
