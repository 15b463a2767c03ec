"""The identity and the bounds of policy improvement on random problems, and where all methods end.

python docs/bounds.py [NUM_PROBLEMS]   (prints two tables; seconds)
"""

from __future__ import annotations

import sys

import numpy as np

from lmpg.gym.classic.exact.bounds import (
    conservative_bound,
    largest_kl,
    largest_total_variation,
    performance_difference,
    trust_region_bound,
)
from lmpg.gym.classic.exact.exact_values import advantages, performance
from lmpg.gym.classic.exact.gradients import natural_gradient, policy_gradient, softmax_policy
from lmpg.gym.classic.exact.improvement import (
    conservative_policy_iteration,
    greedy,
    policy_iteration,
    value_iteration,
)
from lmpg.gym.environments.problems.finite import random_mdp


def gaps(seed: int) -> tuple[float, float, float, float]:
    """In a random problem: error of the identity, then how far above each bound η really is.

    2–7 states, 2–4 actions, γ up to .99. The policy goes a random part α of the way to another,
    which for the conservative bound is the greedy one in every second problem.
    """
    rng = np.random.default_rng(seed)
    S, A = rng.integers(2, 8), rng.integers(2, 5)
    mdp = random_mdp(S, A, rng.uniform(0, 0.99), rng)
    old_SA, new_SA = rng.dirichlet(np.ones(A), size=(2, S))
    difference = performance(mdp, new_SA) - performance(mdp, old_SA)
    towards_SA = greedy(advantages(mdp, old_SA)) if seed % 2 else new_SA
    alpha = rng.uniform()
    mixed_SA, near_SA = ((1 - alpha) * old_SA + alpha * to_SA for to_SA in (towards_SA, new_SA))
    distances = largest_total_variation(near_SA, old_SA) ** 2, largest_kl(old_SA, near_SA)
    return (
        abs(performance_difference(mdp, new_SA, old_SA) - difference),
        performance(mdp, mixed_SA) - conservative_bound(mdp, old_SA, towards_SA, alpha),
        *(
            performance(mdp, near_SA) - trust_region_bound(mdp, near_SA, old_SA, distance)
            for distance in distances
        ),
    )


def ends(seed: int) -> tuple[float, ...]:
    """How far from policy iteration's η others end: 3 states, 2 actions, γ = .6."""
    mdp, coin_SA = random_mdp(3, 2, 0.6, np.random.default_rng(seed)), np.full((3, 2), 0.5)
    best = performance(mdp, policy_iteration(mdp, coin_SA))
    conservative_SA, etas = conservative_policy_iteration(mdp, coin_SA, tolerance=1e-8)
    natural_OA, plain_OA, step = np.zeros((3, 2)), np.zeros((3, 2)), 1.0
    for _ in range(400):
        natural_OA = np.clip(natural_OA + 2 * natural_gradient(mdp, natural_OA), -15, 15)
        gradient_OA, eta = policy_gradient(mdp, plain_OA, True), at(mdp, plain_OA)
        while at(mdp, plain_OA + step * gradient_OA) < eta:
            step /= 2
        plain_OA, step = plain_OA + step * gradient_OA, 2 * step
    found = (
        mdp.start_S @ value_iteration(mdp, 1e-9),
        performance(mdp, conservative_SA),
        at(mdp, natural_OA),
        at(mdp, plain_OA),
    )
    return (*(abs(eta - best) for eta in found), len(etas) - 1, float(np.diff(etas).min()))


def at(mdp, theta_OA: np.ndarray) -> float:
    """η of the softmax policy."""
    return performance(mdp, softmax_policy(mdp, theta_OA))


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    found = np.array([gaps(seed) for seed in range(count)])
    print(f"{count} problems | largest error | violated | closest | median\n---|---|---|---|---")
    print(f"performance difference | {found[:, 0].max():.1e} | | |")
    names = ("CPI bound", "TRPO bound, total variation", "TRPO bound, KL")
    for name, gap in zip(names, found[:, 1:].T):
        print(f"{name} | | {(gap < -1e-12).sum()} | {gap.min():.1e} | {np.median(gap):.2f}")
    heads = ("value iteration", "CPI", "natural gradient", "gradient", "mixtures", "smallest rise")
    print("\nseed | " + " | ".join(heads) + "\n---" + "|---" * len(heads))
    for seed in range(5):
        print(seed, "|", " | ".join(f"{x:.1e}" for x in ends(seed)))
