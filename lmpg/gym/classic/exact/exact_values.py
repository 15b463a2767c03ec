"""What a policy is worth and where it goes, from linear equations (Puterman 1994, chapter 6)."""

from __future__ import annotations

import numpy as np

from lmpg.gym.environments.problems.finite import FiniteMDP


def state_values(mdp: FiniteMDP, pi_SA: np.ndarray) -> np.ndarray:
    """V_S = (I − γ P_π)⁻¹ r_π: the expected discounted return from each state."""
    return _solved(_identity_less(mdp, pi_SA, mdp.gamma), (pi_SA * mdp.r_SA).sum(1))


def action_values(mdp: FiniteMDP, V_S: np.ndarray) -> np.ndarray:
    """Q_SA = r + γ P V: one action first, then what V_S is the value of."""
    return mdp.r_SA + mdp.gamma * mdp.P_SAS @ V_S


def advantages(mdp: FiniteMDP, pi_SA: np.ndarray) -> np.ndarray:
    """A_SA = Q − V of the policy; its mean under the policy is 0 in each state."""
    V_S = state_values(mdp, pi_SA)
    return action_values(mdp, V_S) - V_S[:, None]


def performance(mdp: FiniteMDP, pi_SA: np.ndarray) -> float:
    """η(π), the expected discounted return of an episode: V averaged over `start_S`."""
    return float(mdp.start_S @ state_values(mdp, pi_SA))


def visitation(mdp: FiniteMDP, pi_SA: np.ndarray, gamma: float) -> np.ndarray:
    """ρ_S = Σ_t γ^t P(s_t = s | π), not normalised (arXiv 1502.05477, section 2).

    `gamma` is an argument because the usual policy gradient leaves γ^t out here, and here only:
    then it is 1. Without ends the sum over states is 1/(1 − γ).
    """
    return _solved(_identity_less(mdp, pi_SA, gamma).T, mdp.start_S)


def _identity_less(mdp: FiniteMDP, pi_SA: np.ndarray, gamma: float) -> np.ndarray:
    """I − γ P_π with P_π(s' | s) = Σ_a π(a | s) P(s' | s, a)."""
    return np.eye(len(pi_SA)) - gamma * np.einsum("sa,sat->st", pi_SA, mdp.P_SAS)


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    if np.linalg.cond(matrix) > 1e13:
        raise ValueError(
            "with γ = 1 values are infinite where the episode never ends under the policy: "
            "expected an end from every state, or γ < 1"
        )
    return np.linalg.solve(matrix, right)
