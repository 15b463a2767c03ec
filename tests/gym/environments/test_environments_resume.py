"""An environment that is put back goes on bit for bit, or it is said that it does not."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from lmpg.gym.environments.make import make_envs
from lmpg.gym.environments.runner import Runner
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.runs import checkpoint
from lmpg.runtime.seeding import generator
from tests.support.planted import catches

FIELDS = ("mask_BT", "rewards_BT", "logprobs_BT", "values_BT", "next_values_BT", "ended_BT")


def lived(settings: EnvSettings, seed: int = 0) -> tuple[Runner, MLPPolicy]:
    runner = Runner(make_envs(settings, settings.num_envs), settings.id, seed)
    policy = MLPPolicy(runner.observations.size, runner.actions.spec, PolicySettings(), critic=True)
    policy.initialise(generator("policy"))
    return runner, policy


def assert_same_future(a: Runner, b: Runner, policy: MLPPolicy) -> None:
    first, second = (r.collect(policy, r.num_steps + 700, generator("on")) for r in (a, b))
    for name in FIELDS:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for name, x in first.inputs.items():
        assert torch.equal(x, second.inputs[name]), name
    assert a.metrics() == b.metrics()


@catches("environment saved without its generator, its last action or its pending resets")
@pytest.mark.parametrize(
    "settings",
    [
        EnvSettings(id="CartPole-v1", num_envs=3),
        EnvSettings(id="CartPole-v1", num_envs=3, vectorization="sync"),
        EnvSettings(id="Pendulum-v1", num_envs=3),
        EnvSettings(id="Acrobot-v1", num_envs=2),
        EnvSettings(id="MountainCarContinuous-v0", num_envs=2),
        EnvSettings(id="FrozenLake-v1", num_envs=3),
        EnvSettings(id="Pendulum-v1", num_envs=2, vectorization="async"),
    ],
    ids=lambda s: f"{s.id}-{s.vectorization}",
)
@pytest.mark.parametrize("steps_before", [0, 250])
def test_a_saved_runner_goes_on_bit_for_bit(settings, steps_before, tmp_path):
    runner, policy = lived(settings)
    if steps_before:
        runner.collect(policy, steps_before, generator("before"))
    checkpoint.save(tmp_path, 1, runner.state(), keep=1)
    restored, _ = lived(settings, seed=99)
    assert restored.load_state(checkpoint.newest(tmp_path)[1])
    assert_same_future(runner, restored, policy)
    runner.close()
    restored.close()


class Unrepeatable(gymnasium.Env):
    """Draws from a generator of its own, which nothing can put back."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    rng = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.rng.normal(size=1).astype(np.float32), {}

    def step(self, action):
        return self.rng.normal(size=1).astype(np.float32), 1.0, False, False, {}


def test_an_environment_that_cannot_be_put_back_is_noticed_by_its_observation():
    gymnasium.register("LmpgUnrepeatable-v0", Unrepeatable, max_episode_steps=9)
    try:
        settings = EnvSettings(id="LmpgUnrepeatable-v0", num_envs=2)
        runner, policy = lived(settings)
        runner.collect(policy, 10, generator("before"))
        restored, _ = lived(settings)
        assert not restored.load_state(runner.state())
        assert restored.num_steps == 10
        restored.collect(policy, 20, generator("on"))
    finally:
        del gymnasium.registry["LmpgUnrepeatable-v0"]


@catches("an environment with more state than its arrays is called exact")
def test_a_native_environment_that_holds_more_than_arrays_is_not_called_exact():
    """Not even where it looks the same."""
    runner, policy = lived(EnvSettings(num_envs=2))
    runner.envs.unwrapped.engine = object()
    restored, _ = lived(EnvSettings(num_envs=2))
    assert not restored.load_state(runner.state())
    runner, policy = lived(EnvSettings(num_envs=2))
    runner.envs.unwrapped.engine = object()
    runner.collect(policy, 10, generator("before"))
    restored, _ = lived(EnvSettings(num_envs=2))
    assert not restored.load_state(runner.state())
