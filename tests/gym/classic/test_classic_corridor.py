"""Every actor-critic finds the stochastic policy of the corridor whose cells look alike (G16)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lmpg.algorithms.a2c import A2C
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.gym.classic.incremental import IncrementalMethod
from lmpg.gym.classic.lstd_actor_critic import LstdActorCritic
from lmpg.gym.classic.natural_actor_critic import NaturalActorCritic
from lmpg.gym.classic.natural_policy_gradient import NaturalPolicyGradient
from lmpg.gym.classic.qac import QAC
from lmpg.gym.classic.td_actor_critic import TdActorCritic
from lmpg.gym.classic.td_lambda import TdLambda
from lmpg.gym.classic.trpo import TRPO
from lmpg.gym.environments.runner import Runner
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.runtime.processes import Processes
from lmpg.runtime.seeding import generator
from lmpg.training.settings import UpdateSettings
from lmpg.training.update import Updater
from tests.support.corridor import BEST_P, BEST_V, Corridor, living, p_right, tabular

FITTED = {
    "gamma": 1.0,
    "lam": 0.9,
    "damping": 0.0,
    "critic_epochs": 2,
    "critic_minibatch_size": 250,
}


def learned(
    phases: list[tuple[Any, int]], chunk: int, num_envs: int, skipped: float = 0.0
) -> tuple[float, float]:
    """Mean p and V(first cell) over the last phase but for the first `skipped` of it, from p = .27
    on; steps shrink by phase."""
    first, _ = phases[0]
    with living(Corridor, num_envs=num_envs) as runner:
        policy = tabular(runner, critic="critic" in first.needs, aliased=True)
        policy.actor.bias.data[1] = -1.0
        state = first.initial_state(policy, 0)
        for method, steps in phases:
            ps, values = [], []
            end = runner.num_steps + steps
            while runner.num_steps < end:
                iterate(method, policy, runner, state, min(end, runner.num_steps + chunk))
                ps.append(p_right(policy))
                values.append(first_value(policy, state))
    left = slice(int(skipped * len(ps)), None)
    return float(np.mean(ps[left])), float(np.mean(values[left]))


def iterate(method, policy: MLPPolicy, runner: Runner, state: dict, until: int) -> None:
    drawn = generator("act", until)
    if isinstance(method, IncrementalMethod):
        method.iterate(policy, runner, state, until, drawn)
    else:
        method.update(policy, runner.collect(policy, until, drawn), state, drawn)


@torch.no_grad()
def first_value(policy: MLPPolicy, state: dict) -> float:
    """Of the critic, wherever the method keeps it."""
    if policy.critic is not None:
        return float(policy.values(torch.eye(3)[0]))
    w = state["w"].double()
    of_actions = w[..., 0] + w[..., -1]
    p = p_right(policy)
    return float(of_actions @ torch.tensor([1 - p, p]).double() if w.ndim == 2 else of_actions)


def shrinking(kind, sizes: dict[str, float], steps=(3000, 5000, 14000), **fields):
    return [
        (kind(gamma=1.0, **{k: v * factor for k, v in sizes.items()}, **fields), n)
        for factor, n in zip((5, 1, 0.25), steps)
    ]


SGD = {"actor_step_size": 0.002, "critic_step_size": 0.02}
LIVING = {
    "one step": shrinking(TdActorCritic, SGD),
    "traces": shrinking(TdLambda, SGD | {"critic_step_size": 0.01}, actor_lam=0.8, critic_lam=0.8),
    "sarsa": shrinking(QAC, SGD, baseline=True),
    "lstd": shrinking(LstdActorCritic, {"step_size": 0.2}, memory=0.8),
}
BATCHES = {
    "trpo": [(TRPO, {"max_kl": 0.01}), (TRPO, {"max_kl": 0.0003})],
    "natural gradient": [(NaturalPolicyGradient, {"step_size": s}) for s in (0.2, 0.05)],
    "compatible critic": [(NaturalActorCritic, {"step_size": s}) for s in (0.2, 0.05)],
}


@pytest.mark.slow
@pytest.mark.parametrize("phases", LIVING.values(), ids=LIVING)
def test_actor_critics_that_learn_as_they_live_reach_the_best_p_and_its_value(phases):
    p, value = learned(phases, chunk=500, num_envs=1, skipped=0.5)
    assert p == pytest.approx(BEST_P, abs=0.03)
    assert value == pytest.approx(BEST_V, rel=0.03)


@pytest.mark.parametrize("kinds", BATCHES.values(), ids=BATCHES)
def test_actor_critics_that_learn_from_rollouts_reach_the_best_p_and_its_value(kinds):
    phases = [
        (kind(**FITTED, **fields, critic_learning_rate=rate), steps)
        for (kind, fields), rate, steps in zip(kinds, (0.2, 0.02), (40_000, 60_000))
    ]
    p, value = learned(phases, chunk=1000, num_envs=20)
    assert p == pytest.approx(BEST_P, abs=0.03)
    assert value == pytest.approx(BEST_V, rel=0.03)


C = {"gamma": 1.0, "kl_coef": 0}
SHARED = {
    "ppo": (PPO(**C, lam=0.9, value_clip=None, value_coef=0.5), 4, 1000),
    "a2c": (A2C(**C, lam=0.9, whiten=True, value_coef=0.5), 1, 240),
    "reinforce": (REINFORCE(**C, baseline="value", whiten=True), 1, 240),
}


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "epochs", "chunk"), SHARED.values(), ids=SHARED)
def test_algorithms_with_a_critic_reach_the_best_p_and_its_value(algorithm, epochs, chunk):
    with living(Corridor, num_envs=20) as runner:
        policy = tabular(runner, aliased=True)
        policy.actor.bias.data[1] = -1.0
        for rate, steps in ((0.02, 40_000), (0.004, 60_000)):
            updater = Updater(
                policy, fast(rate, epochs, chunk), 1000, 0, Processes(cpu=True), single_steps=True
            )
            ps, values, end = [], [], runner.num_steps + steps
            while runner.num_steps < end:
                drawn = generator("act", runner.num_steps)
                rollout = runner.collect(policy, runner.num_steps + chunk, drawn)
                updater.update(algorithm, rollout, algorithm.assign_credit(rollout), len(ps))
                ps.append(p_right(policy))
                values.append(first_value(policy, {}))
    assert np.mean(ps) == pytest.approx(BEST_P, abs=0.03)
    assert np.mean(values) == pytest.approx(BEST_V, rel=0.03)


def fast(rate: float, epochs: int, chunk: int) -> UpdateSettings:
    """The critic's tables move faster than the actor's."""
    return UpdateSettings(
        rollout_size=chunk, minibatch_size=chunk, microbatch_size=2 * chunk, epochs=epochs,
        learning_rate=rate, critic_learning_rate=(25 if epochs == 1 else 10) * rate,
        max_grad_norm=100,
    )  # fmt: skip
