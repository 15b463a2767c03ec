"""Finite differences on the small problem: its gradient without a score or a probability."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmpg.gym.classic.exact.comparison import HORIZON, Setting
from lmpg.gym.classic.exact.estimators import whole_returns
from lmpg.gym.classic.exact.sampled_episodes import sampled_episodes


def disturbed_gradients(
    s: Setting, disturbances: int, size: float, num_estimates: int, rng: np.random.Generator
) -> Tensor:
    """g = (ΔΘᵀΔΘ)⁻¹ ΔΘᵀ ΔJ as in `lmpg.gym.classic.finite_differences`, [num_estimates, O·A].

    Each from 2 · disturbances episodes: θ + Δθ and θ − Δθ are played once, with sampled actions.
    size: standard deviation of each component of Δθ.
    """
    shape = (num_estimates, disturbances, s.theta_OA.size)
    delta_KPD = size * rng.standard_normal(shape)
    both = s.theta_OA + np.stack([delta_KPD, -delta_KPD], 2).reshape(-1, *s.theta_OA.shape)
    pi_NOA = torch.from_numpy(both).softmax(-1).numpy()
    episodes = sampled_episodes(s.mdp, pi_NOA[:, s.mdp.seen_S], len(both), HORIZON, rng)
    J_KP2 = whole_returns(episodes, s.mdp.gamma, 0.0)[:, 0].view(num_estimates, disturbances, 2)
    changes_KP1 = (J_KP2[..., :1] - J_KP2[..., 1:]) / 2
    return torch.linalg.lstsq(torch.from_numpy(delta_KPD), changes_KP1).solution[..., 0]
