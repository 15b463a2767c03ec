"""Methods that are others at certain settings (G9, arXiv 2205.09123), through whole updates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmpg.algorithms.a2c import A2C
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.networks.settings import PolicySettings
from lmpg.gym.rollouts import make_source, num_iterations
from lmpg.runs.settings import EvaluationSettings, GymRunSettings
from lmpg.runtime.processes import Processes
from lmpg.training.settings import UpdateSettings
from lmpg.training.update import Updater

PLAIN = {"kl_coef": 0, "gamma": 0.98}
STEPS = 3000


def weights_after(algorithm, without_values=False):
    """The policy after 3,000 steps of CartPole with one optimizer step per rollout."""
    update = UpdateSettings(
        rollout_size=120, minibatch_size=120, microbatch_size=200, epochs=1, learning_rate=3e-3
    )
    run = GymRunSettings(total_timesteps=STEPS)
    source = make_source(
        EnvSettings(num_envs=4), PolicySettings(), algorithm, update, EvaluationSettings(), run
    )
    updater = Updater(
        source.policy,
        update,
        num_iterations(run, update),
        0,
        Processes(cpu=True),
        single_steps=True,
    )
    for step in range(1, num_iterations(run, update) + 1):
        rollout = source.collect(step).rollout
        if without_values:
            nothing = torch.zeros_like(rollout.rewards_BT)
            rollout = replace(rollout, values_BT=nothing, next_values_BT=nothing)
        updater.update(algorithm, rollout, algorithm.assign_credit(rollout), step)
    return source.policy.trainable_state()


@pytest.mark.parametrize("lam", [1.0, 0.9])
def test_ppo_with_one_epoch_and_one_minibatch_is_a2c(lam):
    common = {**PLAIN, "lam": lam, "value_coef": 0.5, "value_clip": None, "whiten": False}
    ppo, a2c = (weights_after(method(**common)) for method in (PPO, A2C))
    for name, expected in a2c.items():
        torch.testing.assert_close(ppo[name], expected, atol=1e-5, rtol=0)


def test_a2c_without_a_critic_is_reinforce():
    a2c = weights_after(A2C(**PLAIN, lam=1.0, value_coef=0), without_values=True)
    reinforce = weights_after(REINFORCE(**PLAIN, baseline="none"))
    for name, expected in reinforce.items():
        torch.testing.assert_close(a2c[name], expected, atol=1e-5, rtol=0)
