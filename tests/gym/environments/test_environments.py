"""Vector environments as rollouts: what is a transition, what bootstraps, what comes back."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from lmpg.functional.advantages import gae
from lmpg.gym.environments.agent import Agent
from lmpg.gym.environments.episodes import play
from lmpg.gym.environments.make import make_envs
from lmpg.gym.environments.normalisation import Normaliser
from lmpg.gym.environments.runner import Runner
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.environments.spaces import Actions, Observations
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.runtime.seeding import generator
from lmpg.settings.section import UserError
from tests.support.planted import catches

ENDED_ROWS = ("mask_BT", "rewards_BT", "terminated_BT", "ended_BT", "values_BT", "next_values_BT")


class Counter(gymnasium.Env):
    """Observation: (episode, step). Ends by itself after 3 + episode steps, is truncated at 5."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        self.episode, self.steps = -1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        return self._observation(), 1.0 + self.steps, self.steps >= 3 + self.episode, False, {}

    def _observation(self):
        return np.array([self.episode, self.steps], dtype=np.float32)


def counters(mode: AutoresetMode, num_envs: int = 2) -> SyncVectorEnv:
    make = lambda: gymnasium.wrappers.TimeLimit(Counter(), 5)  # noqa: E731
    return SyncVectorEnv([make] * num_envs, autoreset_mode=mode)


def agent(runner: Runner, seed: int = 0, **settings) -> MLPPolicy:
    policy = MLPPolicy(
        runner.observations.size, runner.actions.spec, PolicySettings(**settings), critic=True
    )
    policy.initialise(generator(seed, "policy"))
    return policy


def transitions(mode: AutoresetMode, num_steps: int) -> list[dict[str, torch.Tensor]]:
    """Per row, what a rollout recorded of its first `num_steps` transitions, with advantages."""
    runner = Runner(counters(mode), "counter", seed=0)
    rollout = runner.collect(agent(runner), 60, generator(1))
    advantages_BT = gae(
        rollout.rewards_BT,
        rollout.values_BT,
        rollout.next_values_BT,
        rollout.terminated_BT,
        rollout.ended_BT,
        rollout.mask_BT,
        0.9,
        0.8,
    )
    recorded = {name: getattr(rollout, name) for name in ENDED_ROWS}
    recorded |= {"advantages": advantages_BT, "returns": advantages_BT + rollout.values_BT}
    recorded["observations"] = rollout.inputs["observations"]
    return [
        {k: x[b][rollout.mask_BT[b]][:num_steps] for k, x in recorded.items()}
        for b in range(runner.num_envs)
    ]


@catches(
    "bootstrap from the observation after the reset",
    "`final_obs` ignored",
    "a step that only resets counts as a transition",
)
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_autoreset_modes_give_the_same_transitions_advantages_and_returns(mode):  # G20
    num_steps = 3 + 4 + 5 + 5 + 5  # whole episodes: two that terminate, the others truncated
    for expected, row in zip(
        transitions(AutoresetMode.NEXT_STEP, num_steps), transitions(mode, num_steps)
    ):
        for name, x in expected.items():
            torch.testing.assert_close(row[name], x, msg=f"{name} differs in {mode}")


@catches("environments reset at each rollout")
def test_next_step_mode_masks_the_reset_and_counts_transitions_only():
    runner = Runner(counters(AutoresetMode.NEXT_STEP), "counter", seed=0)
    rollout = runner.collect(agent(runner), 20, generator(0))
    # episodes of 3 and 4 steps, each followed by a step that only resets
    expected = [True] * 3 + [False] + [True] * 4 + [False] + [True] * 3
    assert rollout.mask_BT.tolist() == [expected, expected]
    assert runner.num_steps == 20
    assert rollout.rewards_BT[0, 3] == 0
    assert not rollout.ended_BT[0, 3]


@catches("truncation treated as the end")
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_truncation_bootstraps_the_true_last_observation_but_termination_does_not(mode):
    runner = Runner(counters(mode), "counter", seed=0)
    policy = agent(runner)
    rollout = runner.collect(policy, 60, generator(0))
    observations = rollout.inputs["observations"]
    ends = (rollout.ended_BT[0] & rollout.mask_BT[0]).nonzero().squeeze(1).tolist()
    for t in ends[:4]:
        episode, step = observations[0, t].tolist()
        after = policy.values(torch.tensor([[episode, step + 1]]))
        torch.testing.assert_close(rollout.next_values_BT[0, t : t + 1], after.detach())
    assert rollout.terminated_BT[0, ends[:4]].tolist() == [True, True, True, False]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_each_transition_knows_its_time_in_the_episode_across_rollouts(mode):
    runner = Runner(counters(mode), "counter", seed=0)
    policy = agent(runner)
    for until in (14, 37, 60):  # none is the end of an episode
        rollout = runner.collect(policy, until, generator(0))
        seen = rollout.inputs["observations"][..., 1]
        assert torch.equal(rollout.times_BT[rollout.mask_BT].float(), seen[rollout.mask_BT])


def test_episodes_go_on_across_rollouts():
    runner = Runner(counters(AutoresetMode.SAME_STEP), "counter", seed=0)
    policy = agent(runner)
    first = runner.collect(policy, 4, generator(0))
    second = runner.collect(policy, 8, generator(1))
    assert first.inputs["observations"][0].tolist() == [[0, 0], [0, 1]]
    assert second.inputs["observations"][0].tolist() == [[0, 2], [1, 0]]
    torch.testing.assert_close(
        first.next_values_BT[:, -1], policy.values(second.inputs["observations"][:, 0]).detach()
    )
    assert runner.metrics()["episode/return_mean"] == 2 + 3 + 4


@catches("total steps rounded up to whole rows")
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_last_rollout_has_exactly_the_steps_that_were_asked_for(mode):
    runner = Runner(counters(mode, num_envs=4), "counter", seed=0)
    policy = agent(runner)
    total = 0
    for until in (32, 64, 77):
        total += int(
            runner.collect(policy, until, generator(until), exact=until == 77).mask_BT.sum()
        )
    assert total == runner.num_steps == 77


def test_a_step_cut_from_the_last_rollout_still_bootstraps_the_one_before():
    runner = Runner(counters(AutoresetMode.SAME_STEP), "counter", seed=0)
    policy = agent(runner)
    rollout = runner.collect(policy, 3, generator(0), exact=True)
    assert rollout.mask_BT.tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(rollout.next_values_BT[1, 0], rollout.values_BT[1, 1])


def test_recorded_logprobs_are_those_of_the_policy_that_learns():  # ratio 1 at the first step
    runner = Runner(make_envs(EnvSettings(), 3), "CartPole-v1", seed=0)
    policy = agent(runner)
    rollout = runner.collect(policy, 60, generator(0))
    torch.testing.assert_close(
        policy.evaluate(rollout.inputs).logprobs_BT.detach(), rollout.logprobs_BT, rtol=0, atol=0
    )


def test_actions_follow_the_generator_alone():
    def actions(seed):
        runner = Runner(make_envs(EnvSettings(), 3), "CartPole-v1", seed=0)
        return runner.collect(agent(runner), 60, generator(seed)).inputs["actions"]

    assert torch.equal(actions(1), actions(1))
    assert not torch.equal(actions(1), actions(2))


def test_cartpole_steps_natively_and_can_be_told_not_to():
    native = make_envs(EnvSettings(), 2)
    assert "CartPoleVectorEnv" in type(native.unwrapped).__name__
    assert isinstance(make_envs(EnvSettings(vectorization="sync"), 2), SyncVectorEnv)


@catches("actions recorded clipped, or not clipped for the environment")
def test_continuous_actions_are_clipped_for_the_environment_only():
    envs = make_envs(EnvSettings(id="Pendulum-v1"), 2)
    runner = Runner(envs, "Pendulum-v1", seed=0)
    actions = Actions.of(envs.single_action_space, "Pendulum-v1", squash=False)
    assert actions.for_env(np.array([[-9.0], [1.5]], np.float32)).tolist() == [[-2.0], [1.5]]
    policy = agent(runner, initial_log_std=2.0)
    drawn = runner.collect(policy, 40, generator(0)).inputs["actions"]
    assert drawn.abs().max() > 2  # recorded, and evaluated, as drawn


@catches("observations share the environment's buffer")
def test_observations_are_kept_although_environments_reuse_their_buffer():
    envs = make_envs(EnvSettings(id="Pendulum-v1"), 2)
    runner = Runner(envs, "Pendulum-v1", seed=0)
    observations = runner.collect(agent(runner), 6, generator(0)).inputs["observations"]
    assert len({tuple(row) for row in observations[0].tolist()}) == 3


def test_discrete_spaces_are_one_hot_and_may_start_anywhere():
    space = gymnasium.spaces.Discrete(3, start=5)
    features = Observations.of(space, "x").features(np.array([5, 7]))
    assert features.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert Actions.of(space, "x", squash=False).for_env(np.array([0, 2])).tolist() == [5, 7]


def test_evaluation_counts_the_first_episode_of_each_environment():
    gymnasium.register("LmpgCounter-v0", Counter, max_episode_steps=5)
    try:
        settings = EnvSettings(id="LmpgCounter-v0")
        runner = Runner(make_envs(settings, 1), settings.id, seed=0)
        episodes = play(Agent(agent(runner), Normaliser()), settings, 4, seed=0)
    finally:
        del gymnasium.registry["LmpgCounter-v0"]
    assert episodes.returns.tolist() == [9.0] * 4
    assert episodes.lengths.tolist() == [3] * 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"id": "CartPol-v1"}, r"env\.id = CartPol-v1.*did you mean CartPole-v1"),
        ({"id": "nosuchpackage:Env-v0"}, r"module nosuchpackage cannot be imported"),
        ({"id": "Pendulum-v1", "vectorization": "native"}, r"env\.vectorization = native"),
        ({"kwargs": {"masss": 3}}, r"env\.kwargs = \{'masss': 3\} cannot be made"),
    ],
)
def test_bad_environments_are_refused_by_name(settings, said):
    settings = EnvSettings(**settings)
    with pytest.raises(UserError, match=said):
        Runner(make_envs(settings, 2), settings.id, seed=0)
