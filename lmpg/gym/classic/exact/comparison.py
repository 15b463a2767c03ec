"""Every estimator of the policy gradient on one small problem whose gradient is calculated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmpg.gym.classic.exact.estimators import (
    average,
    discounts,
    lambda_advantages,
    log_ratios,
    per_decision_returns,
    returns_to_go,
    step_advantages,
    weighted,
    whole_returns,
)
from lmpg.gym.classic.exact.exact_values import action_values, performance, state_values
from lmpg.gym.classic.exact.gradients import policy_gradient, softmax_policy
from lmpg.gym.classic.exact.measuring import Quality, gradients, quality
from lmpg.gym.classic.exact.sampled_episodes import SampledEpisodes, sampled_episodes
from lmpg.gym.environments.problems.finite import FiniteMDP, random_mdp

HORIZON = 5
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
CreditOf = Callable[[SampledEpisodes], Tensor]


@dataclass(frozen=True)
class Setting:
    """Three states, two actions, five steps, γ = .9, rewards N(1, 1): drawn once, from a seed.

    theta_OA: logits of pi_SA, the policy in question; mu_SA: the one that acts where ratios are
    used. V_S: exact values. wrong_S: with an error from N(0, 1) in each state. truth_OA: the
    gradient of η, usual_OA: without its γ^t.
    """

    mdp: FiniteMDP
    theta_OA: np.ndarray
    pi_SA: np.ndarray
    mu_SA: np.ndarray
    V_S: np.ndarray
    wrong_S: np.ndarray
    truth_OA: np.ndarray
    usual_OA: np.ndarray


def setting(seed: int = 0) -> Setting:
    """The problem of that seed."""
    rng = np.random.default_rng(seed)
    endless = random_mdp(3, 2, 0.9, rng)
    shifted = FiniteMDP(endless.P_SAS, endless.r_SA + 1, endless.start_S, endless.gamma)
    mdp = shifted.with_horizon(HORIZON)
    theta_OA, acting_OA = 0.7 * rng.standard_normal((2, 3, 2))
    pi_SA = softmax_policy(mdp, theta_OA)
    V_S = state_values(mdp, pi_SA)
    return Setting(
        mdp=mdp,
        theta_OA=theta_OA,
        pi_SA=pi_SA,
        mu_SA=softmax_policy(mdp, acting_OA),
        V_S=V_S,
        wrong_S=V_S + rng.standard_normal(len(V_S)),
        truth_OA=policy_gradient(mdp, theta_OA, discounted=True),
        usual_OA=policy_gradient(mdp, theta_OA, discounted=False),
    )


def credits_of(s: Setting) -> dict[str, CreditOf]:
    """Name of each estimator → its credit, for episodes in which π itself acted."""
    gamma, eta = s.mdp.gamma, performance(s.mdp, s.pi_SA)
    Q_SA = torch.from_numpy(action_values(s.mdp, s.V_S))

    def less_average(e: SampledEpisodes) -> Tensor:
        return (to_go := returns_to_go(e, gamma)) - average(to_go, e)

    mixtures = {
        f"{name}, λ = {lam:g}": lambda e, V=V, lam=lam: lambda_advantages(e, V, gamma, lam)
        for name, V in (("exact V", s.V_S), ("wrong V", s.wrong_S))
        for lam in LAMBDAS
    }
    steps = {
        f"wrong V, {n} step{'s' * (n > 1)}": lambda e, n=n: step_advantages(e, s.wrong_S, gamma, n)
        for n in range(1, HORIZON + 1)
    }
    return {
        "whole return": lambda e: whole_returns(e, gamma, 0.0),
        "whole return − η": lambda e: whole_returns(e, gamma, eta),
        "return to go": lambda e: returns_to_go(e, gamma),
        "return to go − η": lambda e: returns_to_go(e, gamma) - eta,
        "return to go − average of the step": less_average,
        "the same without γ^t": lambda e: less_average(e) / discounts(e, gamma),
        "exact Q": lambda e: Q_SA[e.states_NT, e.actions_NT],
        **mixtures,
        **steps,
    }


def off_policy_credits_of(s: Setting) -> dict[str, CreditOf]:
    """Name of each estimator → its credit, for episodes in which μ acted."""
    gamma = s.mdp.gamma

    def of_return(level, cap=None) -> CreditOf:
        return lambda e: weighted(returns_to_go(e, gamma), e, ratios(e), level, cap)

    def ratios(e: SampledEpisodes) -> Tensor:
        return log_ratios(e, s.pi_SA, s.mu_SA)

    return {
        "ratios of the whole episode": of_return("sequence"),
        "ratios up to the reward": lambda e: per_decision_returns(e, ratios(e), gamma),
        "ratios up to the step, exact V, λ = 0": lambda e: weighted(
            lambda_advantages(e, s.V_S, gamma, 0.0), e, ratios(e), "decision"
        ),
        "ratios of the whole episode, capped at 2": of_return("sequence", 2.0),
        "ratios up to the reward, capped at 2": lambda e: per_decision_returns(
            e, ratios(e), gamma, 2.0
        ),
        "ratio of the step alone": of_return("token"),
        "no ratios": lambda e: returns_to_go(e, gamma),
    }


def compared(
    s: Setting,
    estimators: dict[str, CreditOf],
    acting_SA: np.ndarray,
    num_episodes: int,
    seed: int,
    group_size: int = 1,
    horizon: int = HORIZON,
) -> dict[str, tuple[Quality, float]]:
    """Quality of each over the same episodes of `acting_SA`, and CPU seconds per 10⁵ episodes.

    group_size: episodes in a row that start alike, and whose estimates are one, their mean.
    horizon: steps after which all are over.
    """
    rng = np.random.default_rng(seed)
    episodes = sampled_episodes(s.mdp, acting_SA, num_episodes, horizon, rng, group_size)
    found = {}
    for name, credit_of in estimators.items():
        start = time.process_time()
        credit_NT = credit_of(episodes)
        samples_ND = gradients(credit_NT, episodes, s.pi_SA, s.mdp.seen_S, s.mdp.gamma)
        seconds = (time.process_time() - start) * 1e5 / num_episodes
        grouped_PD = samples_ND.view(-1, group_size, samples_ND.shape[1]).mean(1)
        found[name] = quality(grouped_PD, s.truth_OA, group_size), seconds
    return found
