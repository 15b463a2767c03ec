"""Identities, bounds and limits of policy improvement on random finite problems."""

from __future__ import annotations

import numpy as np
import pytest

from lmpg.gym.classic.exact.bounds import (
    conservative_bound,
    largest_kl,
    largest_total_variation,
    performance_difference,
    surrogate,
    trust_region_bound,
)
from lmpg.gym.classic.exact.exact_values import advantages, performance, state_values, visitation
from lmpg.gym.classic.exact.gradients import natural_gradient, policy_gradient, softmax_policy
from lmpg.gym.classic.exact.improvement import (
    conservative_policy_iteration,
    greedy,
    policy_iteration,
    value_iteration,
)
from lmpg.gym.environments.problems.chains import cyclic_chain, one_state_chain
from lmpg.gym.environments.problems.finite import FiniteMDP, random_mdp
from tests.support.planted import catches


def drawn(seed: int) -> tuple[np.random.Generator, FiniteMDP, np.ndarray, np.ndarray]:
    """A random problem and two random policies for it."""
    rng = np.random.default_rng(seed)
    S, A = rng.integers(2, 8), rng.integers(2, 5)
    mdp = random_mdp(S, A, rng.uniform(0, 0.99), rng)
    old_SA, new_SA = rng.dirichlet(np.ones(A), size=(2, S))
    return rng, mdp, old_SA, new_SA


@catches("performance difference with the old policy's visits")
def test_the_performance_difference_is_an_identity_on_a_thousand_random_problems():
    for seed in range(1000):
        _, mdp, old_SA, new_SA = drawn(seed)
        difference = performance(mdp, new_SA) - performance(mdp, old_SA)
        assert performance_difference(mdp, new_SA, old_SA) == pytest.approx(difference, abs=1e-10)


@catches("surrogate with the new policy's visits")
def test_the_surrogate_touches_the_performance_where_the_policies_meet():
    _, mdp, old_SA, new_SA = drawn(5)
    assert surrogate(mdp, old_SA, old_SA) == pytest.approx(performance(mdp, old_SA), abs=1e-12)
    step = 1e-6
    near_SA = (1 - step) * old_SA + step * new_SA
    slopes = [
        f - performance(mdp, old_SA)
        for f in (performance(mdp, near_SA), surrogate(mdp, near_SA, old_SA))
    ]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-4)
    far = performance(mdp, new_SA) - surrogate(mdp, new_SA, old_SA)
    assert abs(far) > 1e-3


def test_the_bounds_are_never_violated_on_a_thousand_random_problems():
    gaps = []
    for seed in range(1000):
        rng, mdp, old_SA, new_SA = drawn(seed)
        towards_SA = greedy(advantages(mdp, old_SA)) if seed % 2 else new_SA
        alpha = rng.uniform()
        mixed_SA = (1 - alpha) * old_SA + alpha * towards_SA
        eta = performance(mdp, mixed_SA)
        gaps.append(eta - conservative_bound(mdp, old_SA, towards_SA, alpha))
        near_SA = (1 - alpha) * old_SA + alpha * new_SA
        variation = largest_total_variation(near_SA, old_SA)
        assert variation**2 <= largest_kl(old_SA, near_SA)
        for distance in (variation**2, largest_kl(old_SA, near_SA)):
            bound = trust_region_bound(mdp, near_SA, old_SA, distance)
            gaps.append(performance(mdp, near_SA) - bound)
    assert min(gaps) >= -1e-12
    assert min(gaps) < 1e-3  # they come close, so that they say something


@catches("penalty of a bound halved, or linear in α")
def test_the_bounds_of_the_one_state_chain_are_worked_out_by_hand():
    """γ = .9, p(end) from .5 to .6 (a fifth of the way to 1): A = ±1/11, Σρ = 1/.55."""
    mdp, old_SA, end_SA = one_state_chain(), np.array([[0.5, 0.5]]), np.array([[0.0, 1.0]])
    new_SA = np.array([[0.4, 0.6]])
    L = 10 / 11 + (0.6 - 0.4) / 11 / 0.55
    assert surrogate(mdp, new_SA, old_SA) == pytest.approx(L)
    mixed = L - 2 * (1 / 11) * 0.9 * 0.2**2 / ((1 - 0.9) * (1 - 0.9 * 0.8))
    assert conservative_bound(mdp, old_SA, end_SA, 0.2) == pytest.approx(mixed)
    trusted = L - 4 * (1 / 11) * 0.9 / 0.1**2 * 0.1**2
    assert trust_region_bound(mdp, new_SA, old_SA, 0.1**2) == pytest.approx(trusted)


@catches("KL(new ‖ old) in the bound of policy improvement", "total variation without its ½")
def test_distances_between_policies_are_the_largest_over_the_states():
    old_SA, new_SA = np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([[0.6, 0.4], [0.5, 0.5]])
    assert largest_total_variation(new_SA, old_SA) == pytest.approx(0.1)
    assert largest_kl(old_SA, new_SA) == pytest.approx(0.02041100, abs=1e-8)  # G10


@pytest.mark.parametrize("seed", range(20))
def test_policy_iteration_finds_what_value_iteration_finds(seed):
    _, mdp, old_SA, _ = drawn(seed)
    best_SA = policy_iteration(mdp, old_SA)
    V_S = state_values(mdp, best_SA)
    np.testing.assert_allclose(V_S, value_iteration(mdp, 1e-9), atol=1e-8)
    assert advantages(mdp, best_SA).max() < 1e-9
    with_ends = FiniteMDP(0.8 * mdp.P_SAS, mdp.r_SA, mdp.start_S, mdp.gamma)
    assert advantages(with_ends, policy_iteration(with_ends, old_SA)).max() < 1e-9


@catches("value iteration stops when the change is below the tolerance")
def test_value_iteration_goes_on_until_the_values_and_not_the_changes_are_right():
    np.testing.assert_allclose(value_iteration(cyclic_chain(), 0.1), 50, atol=0.1)  # G3


def small(seed: int) -> tuple[FiniteMDP, float]:
    """A problem with three states, two actions, γ .6, and what its best policy earns."""
    mdp = random_mdp(3, 2, 0.6, np.random.default_rng(seed))
    return mdp, performance(mdp, policy_iteration(mdp, np.full((3, 2), 0.5)))


@pytest.mark.parametrize("seed", range(5))
def test_conservative_policy_iteration_goes_up_at_every_step_to_the_best(seed):
    mdp, best = small(seed)
    pi_SA, etas = conservative_policy_iteration(mdp, np.full((3, 2), 0.5), tolerance=1e-8)
    assert (np.diff(etas) > 0).all()
    assert performance(mdp, pi_SA) == pytest.approx(best, abs=1e-7)


@catches("conservative policy iteration mixes in more than the bound allows")
def test_the_share_of_the_greedy_policy_is_the_one_that_the_bound_likes_best():
    """One-state chain, γ = .9, p = .5: 𝔸 = 1/11/.55, ε = 1/11, so α = .01/.55/3.6."""
    _, etas = conservative_policy_iteration(one_state_chain(), np.array([[0.5, 0.5]]), 0.1)
    p = 0.5 + 0.5 * 0.01 / 0.55 / 3.6
    assert etas[0] == pytest.approx(10 / 11)
    assert etas[1] == pytest.approx(p / (1 - 0.9 * (1 - p)))


@pytest.mark.parametrize("seed", range(5))
def test_the_natural_gradient_goes_to_the_best(seed):
    mdp, best = small(seed)
    theta_OA = np.zeros((3, 2))
    for _ in range(400):
        theta_OA = np.clip(theta_OA + 2 * natural_gradient(mdp, theta_OA), -15, 15)
    assert performance(mdp, softmax_policy(mdp, theta_OA)) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_policy_gradient_goes_to_the_best(seed):
    """At the rate 1/t (Agarwal et al. 2021); steps that double while η rises shorten the way."""
    mdp, best = small(seed)
    theta_OA, step = np.zeros((3, 2)), 1.0
    for _ in range(400):
        gradient_OA = policy_gradient(mdp, theta_OA, discounted=True)
        eta = performance(mdp, softmax_policy(mdp, theta_OA))
        while performance(mdp, softmax_policy(mdp, theta_OA + step * gradient_OA)) < eta:
            step /= 2
        theta_OA, step = theta_OA + step * gradient_OA, 2 * step
    assert performance(mdp, softmax_policy(mdp, theta_OA)) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_trpos_steps_go_up_to_the_best(seed):
    """With exact expectations, δ = .01: the longest step that the line search accepts."""
    mdp, best = small(seed)
    theta_OA, etas = np.zeros((3, 2)), [-np.inf]
    while (eta := performance(mdp, softmax_policy(mdp, theta_OA))) < best - 1e-6:
        pi_SA = softmax_policy(mdp, theta_OA)
        rho_S = visitation(mdp, pi_SA, mdp.gamma)
        assert eta > etas[-1]
        etas.append(eta)
        s_OA = natural_gradient(mdp, theta_OA)
        sFs = (s_OA * policy_gradient(mdp, theta_OA, True)).sum()
        for tried in range(30):
            new_OA = theta_OA + 0.8**tried * (2 * 0.01 / sFs) ** 0.5 * s_OA
            new_SA = softmax_policy(mdp, new_OA)
            with np.errstate(divide="ignore"):  # an action that has vanished is infinitely far
                kl = rho_S @ (pi_SA * np.log(pi_SA / new_SA)).sum(1) / rho_S.sum()
            if kl <= 0.01 and surrogate(mdp, new_SA, pi_SA) > eta:
                theta_OA = new_OA
                break
    assert len(etas) < 200
