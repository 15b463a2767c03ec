"""REINFORCE from whole episodes is the estimator that the tabular module measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmpg.gym.classic.episodic_reinforce import EpisodicReinforce, average_of_others
from lmpg.gym.classic.exact.comparison import HORIZON, setting
from lmpg.gym.classic.exact.estimators import (
    discounts,
    log_ratios,
    per_decision_returns,
    returns_to_go,
    weighted,
    whole_returns,
)
from lmpg.gym.classic.exact.measuring import gradients, quality
from lmpg.gym.classic.exact.sampled_episodes import sampled_episodes
from lmpg.runtime.seeding import generator
from tests.support.corridor import BEST_P, Corridor, Scripted, living, p_right, tabular
from tests.support.planted import catches

S = setting()
GAMMA = S.mdp.gamma


def episodes(num: int):
    return sampled_episodes(S.mdp, S.mu_SA, num, HORIZON, np.random.default_rng(1))


@catches("rewards of an off-policy return weighed by ratios up to the step, not up to each reward")
@pytest.mark.parametrize(
    ("fields", "credit_of"),
    [
        ({"ratio": "episode"}, lambda e, ρ: weighted(returns_to_go(e, GAMMA), e, ρ, "sequence")),
        ({"ratio": "reward"}, lambda e, ρ: per_decision_returns(e, ρ, GAMMA)),
        ({"ratio": "reward", "ratio_cap": 2}, lambda e, ρ: per_decision_returns(e, ρ, GAMMA, 2)),
        ({"ratio": "step"}, lambda e, ρ: weighted(returns_to_go(e, GAMMA), e, ρ, "token")),
        (
            {"ratio": "episode", "credit": "whole_return"},
            lambda e, ρ: weighted(whole_returns(e, GAMMA, 0.0), e, ρ, "sequence"),
        ),
    ],
)
def test_credit_is_that_of_the_estimators(fields, credit_of):
    e = episodes(50)
    ρ = log_ratios(e, S.pi_SA, S.mu_SA)
    method = EpisodicReinforce(gamma=GAMMA, baseline="none", discount_states=True, **fields)
    expected = credit_of(e, ρ) * discounts(e, GAMMA) * e.mask_NT
    torch.testing.assert_close(method.credits(e.rewards_NT, e.mask_NT, ρ), expected)


@catches("a baseline without the weight of an off-policy step")
@pytest.mark.parametrize(("ratio", "cap"), [("episode", None), ("reward", None), ("step", None)])
def test_the_baseline_of_others_leaves_the_mean_alone_where_ratios_are_whole_products(ratio, cap):
    e = episodes(200_000)
    ρ = log_ratios(e, S.pi_SA, S.mu_SA)
    method = EpisodicReinforce(gamma=GAMMA, discount_states=True, ratio=ratio, ratio_cap=cap)
    credit_NT = method.credits(e.rewards_NT, e.mask_NT, ρ) / discounts(e, GAMMA)
    found = quality(gradients(credit_NT, e, S.pi_SA, S.mdp.seen_S, GAMMA), S.truth_OA)
    assert (found.bias < 3 * found.standard_error) == (ratio != "step")


@catches("an episode is part of its own baseline")
def test_a_baseline_holds_the_other_episodes_alone():
    returns = torch.tensor([[1.0, 2.0], [3.0, 0.0], [5.0, 6.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    assert average_of_others(returns, mask).tolist() == [[4.0, 6.0], [3.0, 8.0 / 2], [2.0, 2.0]]
    assert average_of_others(returns[:1], mask[:1]).tolist() == [[0.0, 0.0]]


def test_the_actor_moves_by_the_gradient_of_its_episodes_when_the_last_has_ended():
    script = {"states": [0, 1], "rewards": [1.0, 2.0], "num_states": 2, "terminal": True}
    method = EpisodicReinforce(gamma=0.5, baseline="none", episodes=2, step_size=1.0)
    with living(Scripted, **script) as runner:
        policy = tabular(runner, critic=False)
        state = method.initial_state(policy, 0)
        assert method.iterate(policy, runner, state, 3, generator(0)) == {}
        assert not policy.actor.weight.any()
        method.iterate(policy, runner, state, 4, generator(1))
    # each score is ±½; G = 1 + ½·2 and 2 whatever is done: half their sum in either episode
    moved = policy.actor.weight.detach()
    assert (moved[0] + moved[1]).tolist() == [0, 0]
    assert moved[0].abs().tolist() in [[a, b] for a in (0, 1.0) for b in (0, 1.0)]
    assert state == {"steps": [], "episodes": []}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{"credit": "return_to_go"}, {"credit": "whole_return", "passes": 2}],
    ids=str,
)
def test_it_finds_the_corridors_best_probability(fields):  # G16
    with living(Corridor) as runner:
        policy = tabular(runner, critic=False, aliased=True)
        policy.actor.bias.data[1] = -1.0
        found = []
        for step_size, steps in ((0.01, 10_000), (0.002, 70_000)):
            method = EpisodicReinforce(gamma=1.0, episodes=20, step_size=step_size, **fields)
            state = method.initial_state(policy, 0)
            end, found = runner.num_steps + steps, []
            while runner.num_steps < end:
                method.iterate(
                    policy, runner, state, runner.num_steps + 500, generator(runner.num_steps)
                )
                found.append(p_right(policy))
    assert np.mean(found[len(found) // 3 :]) == pytest.approx(BEST_P, abs=0.03)
