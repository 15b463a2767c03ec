"""What environments show and take: any space of numbers and choices as features and actions."""

from __future__ import annotations

import copy

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from lmpg.gym.environments.agent import Agent
from lmpg.gym.environments.episodes import play
from lmpg.gym.environments.make import make_envs
from lmpg.gym.environments.normalisation import Normaliser
from lmpg.gym.environments.rewind import Rewindable
from lmpg.gym.environments.runner import Runner
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.environments.spaces import Actions, Observations
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.runtime.seeding import generator
from lmpg.settings.section import UserError
from tests.support.planted import catches

MIXED = spaces.Dict(
    position=spaces.Box(-1, 1, (2, 2)),
    level=spaces.Discrete(3, start=1),
    held=spaces.Tuple((spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3], start=[0, 4]))),
)


class Mixed(gymnasium.Env):
    """Shows draws from `MIXED` for a few steps, always from the same buffers."""

    observation_space = MIXED
    action_space = spaces.MultiBinary(3)

    def __init__(self) -> None:
        self.shown = {"position": np.zeros((2, 2), np.float32)}

    def seen(self):
        drawn = {k: s.sample() for k, s in self.spaces.items()}
        self.shown["position"][:] = drawn["position"]
        self.shown |= {"level": drawn["level"], "held": drawn["held"]}
        return self.shown

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.spaces = copy.deepcopy(MIXED.spaces)
        for space in self.spaces.values():
            space.seed(int(self.np_random.integers(1000)))
        return self.seen(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.t += 1
        return self.seen(), float(action.sum()), self.t == 5, False, {}


def agent_for(runner: Runner) -> MLPPolicy:
    policy = MLPPolicy(runner.observations.size, runner.actions.spec, PolicySettings(), critic=True)
    policy.initialise(generator("policy"))
    return policy


@catches("joint choices that start at other numbers than 0 read as if they did not")
@pytest.mark.parametrize("space", [MIXED, *MIXED.spaces.values()], ids=lambda s: type(s).__name__)
def test_features_are_gymnasiums_flattened_observations(space):
    space.seed(0)
    drawn = [space.sample() for _ in range(4)]
    expected = np.stack([spaces.flatten(space, x) for x in drawn])
    observations = Observations.of(space, "x")
    np.testing.assert_array_equal(observations.features_of_each(drawn), expected)
    together = gymnasium.vector.utils.concatenate(
        space, drawn, gymnasium.vector.utils.create_empty_array(space, 4)
    )
    np.testing.assert_array_equal(observations.features(together), expected)
    assert observations.features(together).dtype == np.float32


def test_spaces_without_a_fixed_number_of_features_are_refused():
    for space in (spaces.Text(3), spaces.Dict(a=spaces.Sequence(spaces.Discrete(2)))):
        with pytest.raises(UserError, match=r"env.id = x: its observations are .*expected Box"):
            Observations.of(space, "x")


@catches("a reset writes over the last observation of the episode before")
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_mixed_observations_are_the_same_in_all_autoreset_modes(mode):
    """The environment writes its first observation of the next episode over the last one."""

    def transitions(mode):
        make = lambda: Rewindable(Mixed(), 0, "Mixed-v0")  # noqa: E731
        runner = Runner(SyncVectorEnv([make] * 2, autoreset_mode=mode), "mixed", seed=0)
        policy = agent_for(runner)
        policy.actor.flat.data.zero_()
        rollout = runner.collect(policy, 60, generator(0))
        kept = {"next": rollout.next_values_BT, **rollout.inputs}
        kept.pop("actions")
        return [{k: x[b][rollout.mask_BT[b]][:25] for k, x in kept.items()} for b in range(2)]

    for expected, found in zip(transitions(AutoresetMode.NEXT_STEP), transitions(mode)):
        for name, x in expected.items():
            torch.testing.assert_close(found[name], x, msg=f"{name} differs in {mode}")


def test_switches_are_choices_between_two():
    actions = Actions.of(spaces.MultiBinary((2, 2)), "x", squash=False)
    assert actions.spec.choices == (2, 2, 2, 2)
    found = actions.for_env(np.array([[0, 1, 1, 0]]))
    assert found.dtype == np.int8
    assert found.tolist() == [[[0, 1], [1, 0]]]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_runner_among_tuples_goes_on_bit_for_bit(vectorization):
    settings = EnvSettings(id="Blackjack-v1", num_envs=2, vectorization=vectorization)
    one, other = (Runner(make_envs(settings, 2), settings.id, seed) for seed in (0, 9))
    policy = agent_for(one)
    one.collect(policy, 41, generator("before"))
    assert other.load_state(one.state())
    first, second = (r.collect(policy, 141, generator("on")) for r in (one, other))
    assert torch.equal(first.inputs["observations"], second.inputs["observations"])
    one.close()
    other.close()


@catches("every few of the evaluated environments have the same starts")
def test_evaluation_in_processes_plays_the_same_episodes_a_few_at_a_time(monkeypatch):
    made = []

    def counted(settings, num_envs):
        made.append(num_envs)
        return make_envs(settings.model_copy(update={"vectorization": "sync"}), num_envs)

    monkeypatch.setattr("lmpg.gym.environments.episodes.make_envs", counted)
    runner = Runner(make_envs(EnvSettings(), 1), "CartPole-v1", seed=0)
    agent = Agent(agent_for(runner), Normaliser())
    found = [
        play(agent, EnvSettings(num_envs=3, vectorization=form), 7, seed=5).returns.tolist()
        for form in ("sync", "async")
    ]
    assert found[0] == found[1]
    assert made == [7, 3, 3, 1]


def test_an_agent_of_another_kind_of_environment_is_refused():
    runner = Runner(make_envs(EnvSettings(), 1), "CartPole-v1", seed=0)
    agent = Agent(agent_for(runner), Normaliser())
    with pytest.raises(UserError, match=r"4 features and 2 discrete.*Acrobot-v1 has 6 and 3 disc"):
        play(agent, EnvSettings(id="Acrobot-v1"), 1, seed=0)
    with pytest.raises(UserError, match=r"Pendulum-v1 has 3 and 1 continuous"):
        play(agent, EnvSettings(id="Pendulum-v1"), 1, seed=0)


def test_a_vector_environment_that_does_not_say_when_it_resets_is_refused():
    class Silent(SyncVectorEnv):
        def __init__(self, num_envs):
            super().__init__([lambda: gymnasium.make("CartPole-v1")] * num_envs)
            self.metadata = {}

    gymnasium.register("LmpgSilent-v0", vector_entry_point=Silent)
    try:
        refused = pytest.raises(UserError, match=r"Silent does not say when it resets")
        with refused, pytest.warns(UserWarning, match="missing AutoresetMode"):
            make_envs(EnvSettings(id="LmpgSilent-v0"), 2)
    finally:
        del gymnasium.registry["LmpgSilent-v0"]
