"""Problems with known answers, on every method that they apply to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from lmpg.algorithms.ppo import PPO
from lmpg.gym.classic.incremental import IncrementalMethod, transitions
from lmpg.gym.classic.lstd_actor_critic import LstdActorCritic
from lmpg.gym.classic.qac import QAC
from lmpg.gym.classic.td_actor_critic import TdActorCritic
from lmpg.gym.classic.td_lambda import TdLambda
from lmpg.gym.classic.trpo import TRPO
from lmpg.gym.environments.agent import Agent
from lmpg.gym.environments.episodes import play
from lmpg.gym.environments.make import make_envs
from lmpg.gym.environments.normalisation import Normaliser
from lmpg.gym.environments.runner import Runner
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.networks.mlp_policy import ActionSpec, MLPPolicy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.gym.rollouts import make_source, num_iterations
from lmpg.gym.settings import GymSettings, gym_settings_class
from lmpg.runtime.processes import Processes
from lmpg.runtime.seeding import generator
from lmpg.training.update import Updater
from tests.support.bandit import BanditPolicy, bandit_rollout, updater_for
from tests.support.corridor import Scripted, tabular
from tests.support.planted import catches

FITTED = {"critic_learning_rate": 0.02, "critic_epochs": 8, "critic_minibatch_size": 256}
WITH_CRITIC = {"kl_coef": 0, "value_coef": 1.0, "whiten": True}
ONCE = {
    "rollout_size": 512, "minibatch_size": 512, "microbatch_size": 512, "epochs": 1,
    "learning_rate": 0.01, "critic_learning_rate": 0.2, "schedule": "linear",
    "max_grad_norm": 0.5,
}  # fmt: skip
LQR = {
    "a2c": (WITH_CRITIC | {"lam": 0.9, "value_clip": None}, ONCE),
    "reinforce": (WITH_CRITIC | {"baseline": "value"}, ONCE),
    "trpo": (FITTED | {"lam": 0.9, "max_kl": 0.005, "damping": 0.0}, {"rollout_size": 2048}),
    **{
        name: (FITTED | {"lam": 0.2, "step_size": 0.1, "damping": 0.0}, {"rollout_size": 2048})
        for name in ("natural_policy_gradient", "natural_actor_critic")
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "algorithm", "update"), [(k, *v) for k, v in LQR.items()])
def test_methods_with_a_critic_find_the_gain_and_the_value_of_lqr(name, algorithm, update):
    """G17 at γ = .9: K = .588403, P = 1.588403, from the last ten iterations."""
    s = gym_settings_class(name).model_validate(
        {
            "env": {"id": "lmpg/LQR-v0", "num_envs": 16, "kwargs": {"square": True}},
            "policy": {"hidden_sizes": (), "log_std": "fixed", "initial_log_std": -2.0},
            "algorithm": {"gamma": 0.9, **algorithm},
            "update": update,
            "run": {"total_timesteps": 100_000},
        }
    )
    source = make_source(s.env, s.policy, s.algorithm, s.update, s.evaluation, s.run)
    found = [gain_and_value(source.policy) for _ in learning(s, source)]
    gain, value = np.mean(found[-10:], axis=0)
    assert gain == pytest.approx(0.588403, rel=0.02)
    assert value == pytest.approx(1.588403, rel=0.02)


def learning(s, source):
    """Iteration by iteration."""
    total = num_iterations(s.run, s.update)
    shared = isinstance(s, GymSettings)
    updater = (
        Updater(source.policy, s.update, total, 0, Processes(cpu=True), single_steps=True)
        if shared
        else None
    )
    state = {} if shared else s.algorithm.initial_state(source.policy, 0)
    for step in range(1, total + 1):
        rollout = source.collect(step).rollout
        if updater:
            updater.update(s.algorithm, rollout, s.algorithm.assign_credit(rollout), step)
        else:
            s.algorithm.update(source.policy, rollout, state, generator("minibatches", step))
        yield step
    source.runner.close()


@torch.no_grad()
def gain_and_value(policy: MLPPolicy) -> tuple[float, float]:
    """K and P, from x = ±1 and 0."""
    seen = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]])
    (up, down, _), (left, right, middle) = policy.actor(seen)[:, 0], policy.values(seen)
    return float(down - up) / 2, float(middle - (left + right) / 2)


G = {"gamma": 0.98}
STILL = {"actor_step_size": 0.0}
CRITICS = {
    "one step": (TdActorCritic(**G, **STILL, critic_step_size=0.5), 2500),
    "traces": (TdLambda(**G, **STILL, critic_step_size=0.1, critic_lam=0.9), 2000),
    "least squares": (LstdActorCritic(**G, step_size=0), 400),
    "sarsa": (QAC(**G, **STILL, critic_step_size=0.45), 6000),
    "regression": (TRPO(**G, critic_learning_rate=1.0, critic_epochs=15), 24_000),
}


@catches("a least-squares critic takes a time limit for the end")
@pytest.mark.slow
@pytest.mark.parametrize(("method", "steps"), CRITICS.values(), ids=CRITICS)
def test_a_time_limit_lowers_no_critics_value(method, steps):  # G3
    online = isinstance(method, IncrementalMethod)
    envs = make_envs(EnvSettings(id="lmpg/CyclicChain-v0"), 1 if online else 8)
    runner = Runner(envs, "lmpg/CyclicChain-v0", seed=0)
    policy = tabular(runner, critic="critic" in method.needs)
    state = method.initial_state(policy, 0)
    while runner.num_steps < steps:
        until, drawn = runner.num_steps + 400, generator(runner.num_steps)
        if online:
            method.iterate(policy, runner, state, until, drawn)
        else:
            method.update(policy, runner.collect(policy, until, drawn), state, drawn)
    runner.close()
    if policy.critic is not None:
        found = policy.values(torch.eye(4))
    else:
        w = state["w"].double().reshape(-1, 5)
        found = w[:, :4] + w[:, 4:]
    assert found.flatten().tolist() == pytest.approx([50] * found.numel(), abs=1)


@catches("the state after an ended episode is its last one")
@pytest.mark.parametrize("terminal", [True, False])
def test_methods_that_learn_as_they_live_see_the_same_life_in_all_autoreset_modes(terminal):  # G20
    def life(mode):
        script = ([0, 1, 2, 3], [1.0, 2.0, 3.0], terminal, 4)
        envs = SyncVectorEnv([lambda: Scripted(*script)], autoreset_mode=mode)
        runner = Runner(envs, "scripted", seed=0)
        policy = tabular(runner)
        return [
            [t.s.argmax(), t.s_next.argmax(), t.s_then.argmax(), t.r, t.terminated, t.ended]
            for t in transitions(policy, runner, 10, generator("act"))
        ]

    modes = [life(mode) for mode in AutoresetMode]
    assert modes[0] == modes[1] == modes[2]
    assert [t[1] for t in modes[0][:3]] == [1, 2, 3]
    assert modes[0][2][2:] == [0, 3.0, terminal, True]


@catches("evaluation goes on after a truncated episode")
def test_leaning_against_the_fall_nearly_balances_cartpole_and_chance_does_not():  # G22
    """θ + θ′ > 0 earns 486 ± 46, a random policy 22.5: scores from here on."""
    policy = MLPPolicy(4, ActionSpec("discrete", 2), PolicySettings(hidden_sizes=()), critic=False)
    agent, settings = Agent(policy, Normaliser()), EnvSettings()
    by_chance = play(agent, settings, 1000, seed=0, generator=generator("chance")).returns
    assert by_chance.mean() == pytest.approx(22.5, abs=4 * 12 / 1000**0.5)
    with torch.no_grad():
        ((weight, _),) = policy.actor.layers()
        weight[1, 2:] = 1.0
    leaning = play(agent, settings, 400, seed=0).returns
    assert leaning.mean() == pytest.approx(486, abs=4 * 46 / 400**0.5)
    assert leaning.std() == pytest.approx(46, abs=15)


@catches("the KL that β and early stops go by is KL(new ‖ old)")
def test_the_kl_that_updates_measure_is_that_of_the_old_policy_to_the_new_one():  # as in G10
    old, new = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.6, 0.1, 0.3])
    rollout = bandit_rollout(BanditPolicy(), 10, 0, 1)
    rollout.inputs["arms"][:, 0] = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)  # as often as likely
    rollout = replace(rollout, logprobs_BT=old.log()[rollout.inputs["arms"]])
    policy = BanditPolicy()
    policy.theta.data = new.log()
    updater = updater_for(policy, rollout_size=10, minibatch_size=10, epochs=1)
    found = updater.update(PPO(), rollout, PPO().assign_credit(rollout), 1)
    assert found["policy/approx_kl"] == pytest.approx((old * (old / new).log()).sum().item())
    assert found["policy/approx_kl"] != pytest.approx((new * (new / old).log()).sum().item())
