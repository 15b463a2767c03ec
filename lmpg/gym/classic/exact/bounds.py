"""How good another policy is, exactly and at least, seen from the policy at hand."""

from __future__ import annotations

import numpy as np

from lmpg.gym.classic.exact.exact_values import advantages, performance, visitation
from lmpg.gym.environments.problems.finite import FiniteMDP


def performance_difference(mdp: FiniteMDP, new_SA: np.ndarray, old_SA: np.ndarray) -> float:
    """η(new) − η(old) = Σ_s ρ_new(s) Σ_a new(a | s) A_old(s, a).

    Kakade & Langford 2002, lemma 6.1. The visits are the *new* policy's,
    the advantages the old one's.
    """
    return float(visitation(mdp, new_SA, mdp.gamma) @ _expected_advantage(mdp, new_SA, old_SA))


def surrogate(mdp: FiniteMDP, new_SA: np.ndarray, old_SA: np.ndarray) -> float:
    """L_old(new) = η(old) + Σ_s ρ_old(s) Σ_a new(a | s) A_old(s, a) (arXiv 1502.05477, eq. 3).

    With the old policy's visits: equal to η(new) in value and gradient at new = old.
    """
    gain_S = _expected_advantage(mdp, new_SA, old_SA)
    return performance(mdp, old_SA) + float(visitation(mdp, old_SA, mdp.gamma) @ gain_S)


def conservative_bound(
    mdp: FiniteMDP, old_SA: np.ndarray, towards_SA: np.ndarray, alpha: float
) -> float:
    """η((1 − α) old + α towards) is at least L − 2εγα² / ((1 − γ)(1 − γ(1 − α))).

    ε = max_s |Σ_a towards(a | s) A_old(s, a)|; Kakade & Langford 2002, theorem 4.1. With (1 − γ)²
    below the line it is eq. 6 of arXiv 1502.05477.
    """
    mixture_SA = (1 - alpha) * old_SA + alpha * towards_SA
    epsilon = abs(_expected_advantage(mdp, towards_SA, old_SA)).max()
    gamma = mdp.gamma
    penalty = 2 * epsilon * gamma * alpha**2 / ((1 - gamma) * (1 - gamma * (1 - alpha)))
    return surrogate(mdp, mixture_SA, old_SA) - penalty


def trust_region_bound(
    mdp: FiniteMDP, new_SA: np.ndarray, old_SA: np.ndarray, distance: float
) -> float:
    """η(new) is at least L − 4εγ/(1 − γ)² · distance (arXiv 1502.05477, theorem 1 and eq. 9).

    distance: the largest total variation over the states, *squared* (eq. 8), or the largest
    KL(old‖new), which is larger. ε = max |A_old(s, a)|.
    """
    epsilon = abs(advantages(mdp, old_SA)).max()
    penalty = 4 * epsilon * mdp.gamma / (1 - mdp.gamma) ** 2 * distance
    return surrogate(mdp, new_SA, old_SA) - penalty


def largest_total_variation(new_SA: np.ndarray, old_SA: np.ndarray) -> float:
    """max_s ½ Σ_a |new − old|."""
    return float(0.5 * abs(new_SA - old_SA).sum(1).max())


def largest_kl(old_SA: np.ndarray, new_SA: np.ndarray) -> float:
    """max_s KL(old‖new) in nats; both positive."""
    return float((old_SA * np.log(old_SA / new_SA)).sum(1).max())


def _expected_advantage(mdp: FiniteMDP, new_SA: np.ndarray, old_SA: np.ndarray) -> np.ndarray:
    """Σ_a new(a | s) A_old(s, a), [S]."""
    return (new_SA * advantages(mdp, old_SA)).sum(1)
