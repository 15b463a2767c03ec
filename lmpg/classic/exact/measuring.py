"""From credit to gradients, and how good those are against the gradient that is calculated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmpg.classic.estimators import discounts
from lmpg.classic.exact.sampling import Episodes


def gradients(
    credit_NT: Tensor, episodes: Episodes, pi_SA: np.ndarray, seen_S: np.ndarray, gamma: float
) -> Tensor:
    """Σ_t γ^t credit_t ∇log π per episode, [N, O·A], for a softmax with logits θ_OA.

    ∂log π(a | s)/∂θ_{o b} = 1[b = a] − π(b | s) where s shows o, and 0 elsewhere.
    """
    N, T = credit_NT.shape
    num_actions, num_seen = pi_SA.shape[1], int(seen_S.max()) + 1
    pi, seen = torch.from_numpy(pi_SA), torch.from_numpy(seen_S)
    weights_NT = credit_NT * discounts(episodes, gamma) * episodes.mask_NT
    total_NOA = torch.zeros(N, num_seen, num_actions, dtype=torch.float64)
    everyone = torch.arange(N)
    for t in range(T):
        states_N, w_N = episodes.states_NT[:, t], weights_NT[:, t]
        seen_N = seen[states_N]
        total_NOA[everyone, seen_N] -= w_N[:, None] * pi[states_N]
        total_NOA[everyone, seen_N, episodes.actions_NT[:, t]] += w_N
    return total_NOA.reshape(N, -1)


@dataclass(frozen=True)
class Quality:
    """bias: |mean − truth|. standard_error of the mean, and variance of one episode's estimate:
    the traces of the covariances."""

    bias: float
    standard_error: float
    variance: float


def quality(samples_ND: Tensor, truth_D: np.ndarray) -> Quality:
    """Of estimates against the gradient that is calculated."""
    variance = float(samples_ND.var(0).sum())
    bias = float((samples_ND.mean(0) - torch.from_numpy(truth_D).reshape(-1)).norm())
    return Quality(bias, (variance / len(samples_ND)) ** 0.5, variance)
