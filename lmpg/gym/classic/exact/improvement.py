"""Better policies by planning: policy iteration, value iteration, conservative policy iteration."""

from __future__ import annotations

import numpy as np

from lmpg.gym.classic.exact.exact_values import action_values, advantages, state_values, visitation
from lmpg.gym.environments.problems.finite import FiniteMDP


def greedy(Q_SA: np.ndarray) -> np.ndarray:
    """The deterministic policy, [S, A], of the first best action in each state."""
    return np.eye(Q_SA.shape[1])[Q_SA.argmax(1)]


def policy_iteration(mdp: FiniteMDP, pi_SA: np.ndarray) -> np.ndarray:
    """The best policy: evaluate, become greedy, until no state gains (Howard 1960).

    The reference for all others. Knows the state even where the policy's observation does not.
    """
    while True:
        A_SA = advantages(mdp, pi_SA)
        gains_S = A_SA.max(1) > 1e-12 * (1 + abs(A_SA).max())
        if not gains_S.any():
            return pi_SA
        pi_SA = np.where(gains_S[:, None], greedy(A_SA), pi_SA)


def value_iteration(mdp: FiniteMDP, tolerance: float) -> np.ndarray:
    """V* within `tolerance` in each state, for γ < 1: V ← max_a Q (Bellman 1957)."""
    V_S = np.zeros(len(mdp.start_S))
    while True:
        new_S = action_values(mdp, V_S).max(1)
        if abs(new_S - V_S).max() * mdp.gamma <= tolerance * (1 - mdp.gamma):
            return new_S
        V_S = new_S


def conservative_policy_iteration(
    mdp: FiniteMDP, pi_SA: np.ndarray, tolerance: float
) -> tuple[np.ndarray, list[float]]:
    """Mixes ever more of the greedy policy in, and never gets worse (Kakade & Langford 2002).

    π ← (1 − α)π + απ' with π' greedy and the α that makes the bound of `conservative_bound`,
    its denominator taken at α = 0, as large as possible: α = 𝔸(1 − γ)²/(4γε). Until the gain
    𝔸 = Σ ρ π' A is below `tolerance`; returns the policy and η before each mixture.
    """
    etas = []
    while True:
        A_SA = advantages(mdp, pi_SA)
        better_SA = greedy(A_SA)
        gain_S = (better_SA * A_SA).sum(1)
        gain = visitation(mdp, pi_SA, mdp.gamma) @ gain_S
        etas.append(float(mdp.start_S @ state_values(mdp, pi_SA)))
        if gain <= tolerance:
            return pi_SA, etas
        steepness = 4 * mdp.gamma * abs(gain_S).max()
        alpha = min(1.0, gain * (1 - mdp.gamma) ** 2 / steepness) if steepness else 1.0
        pi_SA = (1 - alpha) * pi_SA + alpha * better_SA
