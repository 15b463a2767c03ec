"""Problems with known answers, learned by the algorithms that train everything else."""

from __future__ import annotations

import pytest
import torch

from lmpg.algorithms.ppo import PPO
from lmpg.gym.classic.exact.exact_values import performance
from lmpg.gym.environments.problems.aliased import aliased_gridworld
from lmpg.gym.rollouts import GymSource, make_source, num_iterations
from lmpg.gym.settings import GymSettings
from lmpg.runtime.processes import Processes
from lmpg.training.update import Updater

pytestmark = pytest.mark.slow


def learned(**sections) -> GymSource:
    """The source of rollouts after all `run.total_timesteps` have been learned from."""
    s = GymSettings[PPO].model_validate(sections)
    source = make_source(s.env, s.policy, s.algorithm, s.update, s.evaluation, s.run)
    total_steps = num_iterations(s.run, s.update)
    updater = Updater(
        source.policy, s.update, total_steps, s.run.seed, Processes(cpu=True), single_steps=True
    )
    for step in range(1, total_steps + 1):
        rollout = source.collect(step).rollout
        updater.update(s.algorithm, rollout, s.algorithm.assign_credit(rollout), step)
    source.runner.close()
    return source


def test_ppo_finds_the_gain_and_the_value_of_lqr():  # G17, γ = .9: K = .588403, P = 1.588403
    source = learned(
        env={"id": "lmpg/LQR-v0", "num_envs": 16, "kwargs": {"square": True}},
        policy={"hidden_sizes": (), "log_std": "fixed", "initial_log_std": -2.0},
        algorithm={"gamma": 0.9, "lam": 0.2, "kl_coef": 0, "value_clip": None, "value_coef": 1.0},
        update={
            "rollout_size": 2048,
            "minibatch_size": 512,
            "microbatch_size": 512,
            "epochs": 4,
            "learning_rate": 0.01,
            "critic_learning_rate": 0.1,
            "schedule": "linear",
            "max_grad_norm": 0.5,
        },
        run={"total_timesteps": 100_000, "seed": 0},
    )
    seen = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    with torch.no_grad():
        (up, down), values = source.policy.actor(seen)[:, 0], source.policy.values(seen)
        at_zero = source.policy.values(torch.zeros(1, 2))
    assert (down - up).item() / 2 == pytest.approx(0.588403, rel=0.02)
    assert (at_zero - values.mean()).item() == pytest.approx(1.588403, rel=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_ppo_finds_the_corridors_best_probability(seed):  # G16: p(right) = .585786
    source = learned(
        env={"id": "lmpg/Corridor-v0", "num_envs": 16},
        policy={"hidden_sizes": ()},
        algorithm={"gamma": 1.0, "lam": 1.0, "kl_coef": 0, "value_clip": None},
        update={
            "rollout_size": 2048,
            "minibatch_size": 2048,
            "microbatch_size": 2048,
            "epochs": 4,
            "learning_rate": 0.02,
            "critic_learning_rate": 0.5,
            "schedule": "linear",
            "max_grad_norm": 10.0,
        },
        run={"total_timesteps": 120_000, "seed": seed},
    )
    p = source.policy.actor(torch.ones(1, 1)).softmax(-1)[0, 1].item()
    assert p == pytest.approx(0.585786, abs=0.03)


def test_ppo_with_an_entropy_bonus_finds_the_softmax_of_the_payoffs():  # G14, τ = .1
    source = learned(
        env={"id": "lmpg/RockPaperScissors-v0", "num_envs": 64},
        policy={"hidden_sizes": ()},
        algorithm={
            "gamma": 1.0,
            "kl_coef": 0,
            "value_clip": None,
            "entropy_coef": 0.1,
            "whiten": False,
            "clip": None,
        },
        update={
            "rollout_size": 512,
            "minibatch_size": 512,
            "microbatch_size": 512,
            "epochs": 1,
            "learning_rate": 0.03,
            "schedule": "linear",
            "max_grad_norm": 10.0,
        },
        run={"total_timesteps": 512 * 400, "seed": 0},
    )
    pi = source.policy.actor(torch.ones(1, 1)).softmax(-1)[0]
    torch.testing.assert_close(pi, torch.tensor([0.017868, 0.975559, 0.006573]), atol=0.01, rtol=0)


def test_ppo_tosses_a_coin_in_the_grey_cells():  # G16: 3.8 steps
    source = learned(
        env={"id": "lmpg/AliasedGridworld-v0", "num_envs": 16},
        policy={"hidden_sizes": ()},
        algorithm={"gamma": 1.0, "lam": 1.0, "kl_coef": 0, "value_clip": None},
        update={
            "rollout_size": 2048,
            "minibatch_size": 512,
            "microbatch_size": 512,
            "epochs": 4,
            "learning_rate": 0.05,
            "schedule": "linear",
            "max_grad_norm": 10.0,
        },
        run={"total_timesteps": 120_000, "seed": 0},
    )
    mdp = aliased_gridworld()
    pi_OA = source.policy.actor(torch.eye(4)).softmax(-1).detach().double().numpy()
    assert pi_OA[1, 0] == pytest.approx(0.5, abs=0.05)
    assert performance(mdp, pi_OA[mdp.seen_S]) == pytest.approx(-3.8, abs=0.05)
