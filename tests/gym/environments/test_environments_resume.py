"""An environment that is put back goes on bit for bit, or it is said that it does not."""

from __future__ import annotations

import random
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

from lmpg.gym import train
from lmpg.gym.environments import rewind
from lmpg.gym.environments.make import make_envs
from lmpg.gym.environments.memory import put_back, remembered, same
from lmpg.gym.environments.runner import Runner
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.runs import checkpoint
from lmpg.runtime.seeding import generator
from lmpg.settings import said_once
from tests.support.planted import catches

FIELDS = ("mask_BT", "rewards_BT", "logprobs_BT", "values_BT", "next_values_BT", "ended_BT")


def lived(settings: EnvSettings, seed: int = 0) -> tuple[Runner, MLPPolicy]:
    runner = Runner(make_envs(settings, settings.num_envs), settings.id, seed)
    policy = MLPPolicy(runner.observations.size, runner.actions.spec, PolicySettings(), critic=True)
    policy.initialise(generator("policy"))
    return runner, policy


def assert_it_goes_on(runner, settings, policy, folder):
    """Another runner that is put where this one is saved has the same future."""
    checkpoint.save(folder, 1, runner.state(), keep=1)
    restored, _ = lived(settings, seed=99)
    assert restored.load_state(checkpoint.newest(folder)[1])
    assert_same_future(runner, restored, policy)
    runner.close()
    restored.close()


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
    assert_it_goes_on(runner, settings, policy, tmp_path)


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


class Grows(gymnasium.Env):
    """Pays by how many episodes there have been, and draws from generators of its own."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        self.episodes, self.lengths = 0, []
        self.course = SimpleNamespace(level=1.0, seen={(0, 1)})
        self.rng, self.old_rng, self.dice = np.random.default_rng(), None, random.Random()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.old_rng = np.random.RandomState(seed)
        self.time, self.goal = 0, 3 + self.episodes % 5
        self.episodes += 1
        self.course.level *= 1.1
        return self.look(), {}

    def look(self):
        drawn = self.rng.normal() + self.old_rng.normal() + self.dice.random()
        return np.array([self.course.level, drawn], np.float32)

    def step(self, action):
        self.time += 1
        over = self.time >= self.goal
        if over:
            self.lengths.append(self.time)
        return self.look(), float(action * self.episodes), over, False, {}


class Counts(Grows):
    """Remembers in its class, where nobody looks."""

    total = 0

    def reset(self, *, seed=None, options=None):
        Counts.total += 1
        return super().reset(seed=seed)

    def step(self, action):
        seen, _, *rest = super().step(action)
        return seen, float(Counts.total), *rest


@pytest.fixture
def registered():
    kinds = {"LmpgGrows-v0": Grows, "LmpgCounts-v0": Counts}
    for name, kind in kinds.items():
        gymnasium.register(name, kind)
    said_once._said.clear()
    yield
    for name in kinds:
        del gymnasium.registry[name]


@catches("an environment's memory of earlier episodes starts over on resume")
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_an_environment_remembers_of_earlier_episodes_is_put_back(
    registered, vectorization, tmp_path
):
    settings = EnvSettings(id="LmpgGrows-v0", num_envs=2, vectorization=vectorization)
    runner, policy = lived(settings)
    runner.collect(policy, 111, generator("before"))
    assert_it_goes_on(runner, settings, policy, tmp_path)


def test_a_memory_that_cannot_be_seen_is_noticed_by_what_it_pays(registered):
    settings = EnvSettings(id="LmpgCounts-v0", num_envs=2)
    runner, policy = lived(settings)
    runner.collect(policy, 111, generator("before"))
    restored, _ = lived(settings)
    assert not restored.load_state(runner.state())


@catches("the actions of an episode without an end are kept for ever")
def test_an_episode_too_long_to_be_replayed_is_not_kept_and_said_once(monkeypatch, caplog):
    monkeypatch.setattr(rewind, "LONGEST_REPLAY", 50)
    gymnasium.register("LmpgEndless-v0", Unrepeatable)
    said_once._said.clear()
    try:
        settings = EnvSettings(id="LmpgEndless-v0", num_envs=2)
        runner, policy = lived(settings)
        runner.collect(policy, 100, generator("before"))
        assert "too_long" not in runner.state()["envs"]["copies"][0]
        runner.collect(policy, 300, generator("on"))
        assert runner.state()["envs"]["copies"] == [{"too_long": True}] * 2
        assert caplog.text.count("more than 50 steps") == len(caplog.records) == 1
        restored, _ = lived(settings)
        assert not restored.load_state(runner.state())
    finally:
        del gymnasium.registry["LmpgEndless-v0"]


def test_memories_keep_kind_and_leave_data_and_unchanged_attributes_alone():
    env = Grows()
    env.table, env.half, env.view = np.zeros(10**6), np.float32(0.5), np.arange(3)
    memory = remembered(env)
    assert "0.table" not in memory
    view, course = env.view, env.course
    env.half, env.episodes, env.lengths, env.course.seen = 1, 7, [1], set()
    put_back(env, memory)
    assert same(remembered(env), memory)
    assert type(env.half) is np.float32
    assert env.view is view
    assert env.course is course
    assert course.seen == {(0, 1)}


def test_a_run_prolonged_after_uncounted_steps_says_that_it_is_another_one(tmp_path, caplog):
    """Native CartPole resets in a step of its own, so copies do not end together."""
    small = {"update": {"rollout_size": 64, "minibatch_size": 32}, "evaluation": {"size": 1}}
    for steps in (128, 256):
        caplog.clear()
        run = {"output_dir": str(tmp_path), "total_timesteps": steps, "resume": True}
        train(**small, env={"num_envs": 8}, run=run)
    assert "steps at its end that it did not count" in caplog.text
