"""Estimators of the policy gradient against the gradient that is calculated.

Means of 200,000 episodes. Without bias no component is further from the truth than 3 of its own
standard errors; with bias the worst is more than 5 away.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmpg.gym.classic.exact.comparison import (
    HORIZON,
    LAMBDAS,
    compared,
    credits_of,
    off_policy_credits_of,
    setting,
)
from lmpg.gym.classic.exact.estimators import (
    average,
    lambda_advantages,
    returns_to_go,
    step_advantages,
    whole_returns,
)
from lmpg.gym.classic.exact.measuring import gradients, quality
from lmpg.gym.classic.exact.sampled_episodes import sampled_episodes
from lmpg.gym.environments.problems.bandit import bandit
from lmpg.gym.environments.problems.chains import one_state_chain, random_walk
from tests.support.planted import catches

NUM_EPISODES = 200_000
BIASED = [
    *(f"wrong V, λ = {lam:g}" for lam in LAMBDAS[:-1]),
    "wrong V, 1 step",
    "wrong V, 2 steps",
    "ratios of the whole episode, capped at 2",
    "ratios up to the reward, capped at 2",
    "ratio of the step alone",
    "no ratios",
    "the same without γ^t",
]
HARDLY_BIASED = ["wrong V, 3 steps", "wrong V, 4 steps"]  # γ^n and mixing leave little
UNBIASED = [
    "whole return",
    "whole return − η",
    "return to go",
    "return to go − η",
    "return to go − average of the step",
    "exact Q",
    *(f"exact V, λ = {lam:g}" for lam in LAMBDAS),
    "wrong V, λ = 1",
    f"wrong V, {HORIZON} steps",
    "ratios of the whole episode",
    "ratios up to the reward",
    "ratios up to the step, exact V, λ = 0",
]


@pytest.fixture(scope="module")
def measured():
    s = setting()
    on = compared(s, credits_of(s), s.pi_SA, NUM_EPISODES, seed=1)
    off = compared(s, off_policy_credits_of(s), s.mu_SA, NUM_EPISODES, seed=2)
    return {name: found for name, (found, _) in {**on, **off}.items()}


def test_every_estimator_is_judged(measured):
    assert sorted(measured) == sorted(UNBIASED + BIASED + HARDLY_BIASED)


@catches(
    "an estimate without γ^t taken for the gradient",
    "the estimate with a score that lacks its mean",
    "one-step ratio, or no product, in the per-decision estimate",
    "the ratio π/μ upside down",
    "an estimate with the action value of the next state",
)
@pytest.mark.parametrize("name", UNBIASED)
def test_estimators_without_bias_agree_with_the_gradient(measured, name):
    assert measured[name].largest_error < 3


@catches("the error of one component hidden in that of the whole vector")
@pytest.mark.parametrize("name", BIASED)
def test_estimators_with_bias_show_it(measured, name):
    assert measured[name].largest_error > 5


def test_without_its_powers_of_gamma_the_estimate_is_of_the_usual_vector():
    s = setting()
    rng = np.random.default_rng(1)
    episodes = sampled_episodes(s.mdp, s.pi_SA, NUM_EPISODES, HORIZON, rng)
    credit_NT = returns_to_go(episodes, 0.9)
    samples_ND = gradients(
        credit_NT - average(credit_NT, episodes), episodes, s.pi_SA, s.mdp.seen_S, 1.0
    )
    found = quality(samples_ND, s.usual_OA)
    assert found.largest_error < 3


@catches("variance of a mean of several episodes taken for one episode's")
def test_errors_are_counted_in_the_worst_components_own_standard_errors():
    samples_ND = torch.tensor([[1.0, 10.0], [3.0, 30.0]]).double().repeat(50, 1)
    found = quality(samples_ND, np.array([2.3, 20.0]), episodes_each=4)
    assert found.largest_error == pytest.approx(0.3 / 0.100504, rel=1e-4)
    assert found.bias == pytest.approx(0.3, rel=1e-5)
    assert found.standard_error == pytest.approx(1.010051, rel=1e-5)
    assert found.variance == pytest.approx(4 * 102.0202, rel=1e-5)
    assert found.noise == pytest.approx(4 * 102.0202 / 404, rel=1e-5)
    right_angle = quality(samples_ND, np.array([-20.0, 2.0]))
    assert right_angle.angle == pytest.approx(90, abs=1e-4)


@catches("baseline averaged over finished episodes too")
def test_causality_and_baselines_lower_the_variance(measured):
    order = [
        "whole return",
        "return to go",
        "return to go − η",
        "return to go − average of the step",
        "exact V, λ = 1",
    ]
    variances = [measured[name].variance for name in order]
    assert variances == sorted(variances, reverse=True)
    assert variances[-1] < variances[0] / 50


def test_lambda_trades_the_bias_of_a_wrong_critic_for_variance(measured):
    biases = [measured[f"wrong V, λ = {lam:g}"].bias for lam in LAMBDAS]
    assert biases == sorted(biases, reverse=True)
    with_exact = [measured[f"exact V, λ = {lam:g}"].variance for lam in LAMBDAS]
    assert with_exact == sorted(with_exact)  # nothing to trade: λ = 0 is best
    with_wrong = [measured[f"wrong V, λ = {lam:g}"].variance for lam in LAMBDAS[2:]]
    assert with_wrong == sorted(with_wrong)


def test_n_steps_end_in_the_return_and_begin_with_the_td_error():
    s = setting()
    episodes = sampled_episodes(s.mdp, s.pi_SA, 100, HORIZON, np.random.default_rng(0))
    pairs = [(1, 0.0), (HORIZON, 1.0)]
    for n, lam in pairs:
        torch.testing.assert_close(
            step_advantages(episodes, s.wrong_S, 0.9, n),
            lambda_advantages(episodes, s.wrong_S, 0.9, lam),
        )


@pytest.mark.parametrize(("baseline", "variance"), [(0.0, 0.0625), (0.5, 0.0)])
def test_the_bandits_variance_is_that_of_g12(baseline, variance):
    mdp, pi_SA = bandit(), np.array([[0.5, 0.5]])
    episodes = sampled_episodes(mdp, pi_SA, 100_000, 1, np.random.default_rng(0))
    samples_ND = gradients(whole_returns(episodes, 1.0, baseline), episodes, pi_SA, mdp.seen_S, 1.0)
    np.testing.assert_allclose(samples_ND.var(0), variance, atol=1e-4)
    np.testing.assert_allclose(samples_ND.mean(0), [0.25, -0.25], atol=3e-3)


def test_sampled_episodes_stop_where_the_problem_ends():
    mdp = random_walk()
    episodes = sampled_episodes(mdp, np.full((5, 2), 0.5), 2000, 400, np.random.default_rng(0))
    lengths_N = episodes.mask_NT.sum(1)
    assert lengths_N.double().mean() == pytest.approx(9, abs=0.5)  # 3 · (6 − 3) steps
    assert torch.equal(episodes.ended_NT.long().argmax(1) + 1, lengths_N)
    assert episodes.rewards_NT.sum(1).mean() == pytest.approx(0.5, abs=0.034)
    assert not episodes.rewards_NT[~episodes.mask_NT].any()


def test_episodes_that_go_on_too_long_are_refused():
    with pytest.raises(ValueError, match="go on after 3 steps"):
        sampled_episodes(
            one_state_chain(), np.array([[0.5, 0.5]]), 100, 3, np.random.default_rng(0)
        )
