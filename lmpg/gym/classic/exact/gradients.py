"""The gradient of the performance of a softmax policy with one logit per observation and action.

States that look alike share their logits θ_OA, so that π(a | s) ∝ exp θ[seen(s), a].
"""

from __future__ import annotations

import numpy as np

from lmpg.gym.classic.exact.exact_values import advantages, visitation
from lmpg.gym.environments.problems.finite import FiniteMDP


def softmax_policy(mdp: FiniteMDP, theta_OA: np.ndarray) -> np.ndarray:
    """pi_SA."""
    weights_OA = np.exp(theta_OA - theta_OA.max(1, keepdims=True))
    return (weights_OA / weights_OA.sum(1, keepdims=True))[mdp.seen_S]


def policy_gradient(mdp: FiniteMDP, theta_OA: np.ndarray, discounted: bool) -> np.ndarray:
    """∂η/∂θ_oa = Σ_{s shows o} ρ(s) π(a | s) A(s, a), [O, A] (Sutton et al. 2000, theorem 1).

    discounted: ρ holds the factor γ^t. Only so it is the gradient of η. Without it (False, what
    nearly all implementations follow) later steps count as much as earlier ones; the episode must
    end then, and the result is in general no function's gradient (Nota & Thomas 2020).
    """
    pi_SA = softmax_policy(mdp, theta_OA)
    rho_S = visitation(mdp, pi_SA, mdp.gamma if discounted else 1.0)
    gradient_OA = np.zeros_like(theta_OA)
    np.add.at(gradient_OA, mdp.seen_S, rho_S[:, None] * pi_SA * advantages(mdp, pi_SA))
    return gradient_OA


def natural_gradient(mdp: FiniteMDP, theta_OA: np.ndarray) -> np.ndarray:
    """F⁺ ∂η/∂θ, [O, A], with F = Σ_s ρ(s)/Σρ · E_a[∇log π ∇log πᵀ] (Kakade 2001).

    F has a block per observation, its share of the visits times diag π − π πᵀ, so F⁺ divides the
    gradient by share and π and takes the mean over the actions away: what is left is Σρ times the
    advantage, averaged over the states that look alike.
    """
    pi_SA = softmax_policy(mdp, theta_OA)
    rho_S = visitation(mdp, pi_SA, mdp.gamma)
    summed_OA, share_O = np.zeros_like(theta_OA), np.zeros(len(theta_OA))
    np.add.at(summed_OA, mdp.seen_S, rho_S[:, None] * advantages(mdp, pi_SA))
    np.add.at(share_O, mdp.seen_S, rho_S / rho_S.sum())
    return (summed_OA - summed_OA.mean(1, keepdims=True)) / share_O[:, None]
