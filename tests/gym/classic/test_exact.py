"""Values, visits and gradients of finite problems against closed forms, differences and loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lmpg.gym.classic.exact.exact_values import action_values, performance, state_values, visitation
from lmpg.gym.classic.exact.gradients import natural_gradient, policy_gradient, softmax_policy
from lmpg.gym.environments.problems.aliased import aliased_gridworld, short_corridor
from lmpg.gym.environments.problems.bandit import bandit
from lmpg.gym.environments.problems.chains import (
    cyclic_chain,
    one_state_chain,
    random_walk,
    three_state_chain,
)
from lmpg.gym.environments.problems.finite import FiniteMDP, random_mdp
from lmpg.gym.environments.problems.rock_paper_scissors import RockPaperScissors
from tests.support.planted import catches


def aliased_mdp(seed: int, gamma: float = 0.8) -> FiniteMDP:
    """Random, with four states of which two look alike, and ends."""
    mdp = random_mdp(4, 3, gamma, np.random.default_rng(seed))
    seen_S = np.array([0, 1, 1, 2])
    return FiniteMDP(0.9 * mdp.P_SAS, mdp.r_SA, mdp.start_S, gamma, seen_S)


def uniform(mdp: FiniteMDP) -> np.ndarray:
    return np.full(mdp.r_SA.shape, 1 / mdp.r_SA.shape[1])


def enumerated(mdp: FiniteMDP, theta_OA: np.ndarray, horizon: int, discounted: bool) -> np.ndarray:
    """Σ over all trajectories of P(τ) Σ_t γ^t ∇log π(a_t) (r_t + γ r_{t+1} + …), one at a time."""
    (S, A), pi_SA = mdp.r_SA.shape, softmax_policy(mdp, theta_OA)
    total_OA = np.zeros_like(theta_OA)
    for length in range(1, horizon + 1):
        for states in itertools.product(range(S), repeat=length):
            for actions in itertools.product(range(A), repeat=length):
                steps = list(zip(states, actions))
                p = mdp.start_S[states[0]] * np.prod([pi_SA[s, a] for s, a in steps])
                moves = zip(states, actions, states[1:])
                p *= np.prod([mdp.P_SAS[s, a, after] for s, a, after in moves])
                if length < horizon:
                    p *= 1 - mdp.P_SAS[states[-1], actions[-1]].sum()
                for t, (s, a) in enumerate(steps):
                    rewards = [mdp.r_SA[step] for step in steps[t:]]
                    to_go = sum(mdp.gamma**k * r for k, r in enumerate(rewards))
                    score_A = np.eye(A)[a] - pi_SA[s]
                    weight = mdp.gamma**t if discounted else 1
                    total_OA[mdp.seen_S[s]] += p * weight * to_go * score_A
    return total_OA


@catches("γ^t left out of the gradient, or never left out")
def test_the_one_state_chain_has_the_numbers_of_g13():
    mdp, theta_OA = one_state_chain(), np.zeros((1, 2))
    V_S = state_values(mdp, uniform(mdp))
    np.testing.assert_allclose(V_S, 0.909091, atol=1e-6)
    assert action_values(mdp, V_S)[0] == pytest.approx([0.818182, 1], abs=1e-6)
    true = policy_gradient(mdp, theta_OA, discounted=True)
    np.testing.assert_allclose(true, [[-0.0826446, 0.0826446]], atol=1e-7)
    usual = policy_gradient(mdp, theta_OA, discounted=False)
    np.testing.assert_allclose(usual, [[-0.0909091, 0.0909091]], atol=1e-7)


def test_the_bandit_has_the_gradients_of_g12():
    mdp, theta_OA = bandit(), np.zeros((1, 2))
    np.testing.assert_allclose(policy_gradient(mdp, theta_OA, True), [[0.25, -0.25]])
    direction = natural_gradient(mdp, theta_OA)
    np.testing.assert_allclose(direction, [[0.5, -0.5]])
    after = softmax_policy(mdp, theta_OA + direction)
    assert after[0, 0] == pytest.approx(0.731059, abs=1e-6)


def test_with_an_entropy_bonus_the_softmax_of_the_payoffs_is_stationary():  # G14
    mdp, tau = RockPaperScissors().mdp, 0.1
    theta_OA = mdp.r_SA / tau
    pi_A = softmax_policy(mdp, theta_OA)[0]
    np.testing.assert_allclose(pi_A, [0.017868, 0.975559, 0.006573], atol=5e-7)
    entropy_slopes = -pi_A * (np.log(pi_A) - pi_A @ np.log(pi_A))  # ∂H/∂θ
    slopes = policy_gradient(mdp, theta_OA, True)[0] + tau * entropy_slopes
    np.testing.assert_allclose(slopes, 0, atol=1e-12)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.585786, 0.95])
def test_the_corridor_is_worth_what_g16_says(p):
    mdp = short_corridor()
    V = (2 * p - 4) / (p * (1 - p))
    assert performance(mdp, np.tile([1 - p, p], (3, 1))) == pytest.approx(V, rel=1e-9)


def test_the_corridors_gradient_vanishes_at_its_best_probability():  # G16
    p = 2 - 2**0.5
    theta_OA = np.log([[1 - p, p]])
    mdp = short_corridor()
    assert performance(mdp, softmax_policy(mdp, theta_OA)) == pytest.approx(-11.6569, abs=1e-4)
    np.testing.assert_allclose(policy_gradient(mdp, theta_OA, True), 0, atol=1e-9)
    worse = policy_gradient(mdp, np.log([[0.05, 0.95]]), True)
    assert worse[0, 1] < 0


def test_a_coin_in_the_grey_cells_takes_3_8_steps():  # G16
    mdp = aliased_gridworld()
    seen_OA = np.array([[0, 1, 0], [0.5, 0.5, 0], [0, 0, 1], [1, 0, 0]])
    np.testing.assert_allclose(state_values(mdp, seen_OA[mdp.seen_S]), [-5, -4, -1, -4, -5])
    assert performance(mdp, seen_OA[mdp.seen_S]) == pytest.approx(-3.8)
    never = seen_OA.copy()
    never[1] = [1, 0, 0]
    with pytest.raises(ValueError, match="never ends"):
        state_values(mdp, never[mdp.seen_S])


def test_the_random_walk_and_the_ring_have_the_values_of_g6_and_g3():
    walk = random_walk()
    np.testing.assert_allclose(state_values(walk, uniform(walk)), np.arange(1, 6) / 6)
    ring = cyclic_chain()
    np.testing.assert_allclose(state_values(ring, uniform(ring)), 50)
    pretended = state_values(ring.with_horizon(8), uniform(ring.with_horizon(8)))
    np.testing.assert_allclose((pretended[0] + pretended[4 * 4]) / 2, 5.67, atol=0.005)


def test_the_three_state_chain_goes_where_its_actions_lead():
    mdp = three_state_chain(gamma=0.999)
    always = np.tile([0.0, 1.0], (3, 1))
    assert performance(mdp, always) * 0.001 == pytest.approx(0.8, abs=1e-3)
    assert performance(mdp, uniform(mdp)) < performance(mdp, always)


@catches("visits of the reversed chain")
@pytest.mark.parametrize("seed", range(3))
def test_visits_are_those_of_the_powers_of_the_chain(seed):
    mdp = aliased_mdp(seed)
    pi_SA = softmax_policy(mdp, np.random.default_rng(seed).standard_normal((3, 3)))
    P_SS = np.einsum("sa,sat->st", pi_SA, mdp.P_SAS)
    powers = [0.8**t * mdp.start_S @ np.linalg.matrix_power(P_SS, t) for t in range(200)]
    np.testing.assert_allclose(visitation(mdp, pi_SA, 0.8), np.sum(powers, axis=0), rtol=1e-9)
    endless = random_mdp(4, 3, 0.8, np.random.default_rng(seed))
    assert visitation(endless, uniform(endless), 0.8).sum() == pytest.approx(5)


@catches("states that look alike do not share their gradient")
@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_is_the_slope_of_the_performance(seed):
    mdp = aliased_mdp(seed)
    theta_OA = np.random.default_rng(seed + 100).standard_normal((3, 3))
    slopes_OA = np.zeros_like(theta_OA)
    for place in np.ndindex(*theta_OA.shape):
        up, down = theta_OA.copy(), theta_OA.copy()
        up[place] += 1e-5
        down[place] -= 1e-5
        ends = [performance(mdp, softmax_policy(mdp, theta)) for theta in (up, down)]
        slopes_OA[place] = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(policy_gradient(mdp, theta_OA, True), slopes_OA, atol=1e-8)


@pytest.mark.parametrize("discounted", [True, False])
def test_the_gradient_of_a_short_task_is_the_sum_over_all_trajectories(discounted):
    whole = aliased_mdp(3)
    P_SAS, r_SA = whole.P_SAS[:3, :2, :3], whole.r_SA[:3, :2]
    mdp = FiniteMDP(P_SAS, r_SA, np.full(3, 1 / 3), 0.8, np.array([0, 1, 1]))
    theta_OA = np.random.default_rng(1).standard_normal((2, 2))
    found_OA = policy_gradient(mdp.with_horizon(3), theta_OA, discounted)
    np.testing.assert_allclose(found_OA, enumerated(mdp, theta_OA, 3, discounted), atol=1e-12)


def test_the_natural_gradient_is_the_advantage_in_every_state_that_is_told_apart():
    mdp = random_mdp(4, 3, 0.8, np.random.default_rng(0))
    theta_OA = np.random.default_rng(1).standard_normal((4, 3))
    pi_SA = softmax_policy(mdp, theta_OA)
    V_S = state_values(mdp, pi_SA)
    A_SA = action_values(mdp, V_S) - V_S[:, None]
    expected_OA = (A_SA - A_SA.mean(1, keepdims=True)) * 5  # Σρ = 1/(1 − γ)
    np.testing.assert_allclose(natural_gradient(mdp, theta_OA), expected_OA, atol=1e-9)


@catches("natural gradient times the visits instead of over them")
@pytest.mark.parametrize("seed", range(3))
def test_the_natural_gradient_solves_the_fisher_matrix_where_states_look_alike(seed):
    mdp = aliased_mdp(seed)
    theta_OA = np.random.default_rng(seed).standard_normal((3, 3))
    pi_SA = softmax_policy(mdp, theta_OA)
    rho_S = visitation(mdp, pi_SA, mdp.gamma)
    F = np.zeros((9, 9))
    for s, a in np.ndindex(*pi_SA.shape):
        score_OA = np.zeros((3, 3))
        score_OA[mdp.seen_S[s]] = np.eye(3)[a] - pi_SA[s]
        F += rho_S[s] / rho_S.sum() * pi_SA[s, a] * np.outer(score_OA, score_OA)
    expected = np.linalg.pinv(F, rcond=1e-10) @ policy_gradient(mdp, theta_OA, True).reshape(-1)
    np.testing.assert_allclose(natural_gradient(mdp, theta_OA).reshape(-1), expected, atol=1e-9)


def test_the_natural_step_is_the_same_policy_whatever_the_logits_are_called():
    """Logits θ = Mψ: a natural step in ψ moves π as the one in θ does, a plain one does not."""
    mdp = bandit((1.0, 0.0, 0.5))
    theta_A, M_AA = np.array([0.3, -0.2, 0.1]), np.random.default_rng(0).standard_normal((3, 3))
    pi_A = softmax_policy(mdp, theta_A[None])[0]
    g_A = policy_gradient(mdp, theta_A[None], True)[0]
    F_AA = np.diag(pi_A) - np.outer(pi_A, pi_A)
    natural_A = M_AA @ np.linalg.pinv(M_AA.T @ F_AA @ M_AA) @ M_AA.T @ g_A
    plain_A = M_AA @ M_AA.T @ g_A

    def moved(direction_A):
        return pi_A * (direction_A - pi_A @ direction_A)  # dπ of a small step

    expected = moved(natural_gradient(mdp, theta_A[None])[0])
    np.testing.assert_allclose(moved(natural_A), expected, atol=1e-9)
    assert abs(moved(plain_A) - moved(g_A)).max() > 0.01
