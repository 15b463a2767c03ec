"""Squashed, joint and fixed-width actions: their densities, and what environments get."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import distributions

from lmpg.algorithms.ppo import PPO
from lmpg.gym.environments.agent import Agent
from lmpg.gym.environments.episodes import play
from lmpg.gym.environments.normalisation import Normaliser
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.environments.spaces import Actions
from lmpg.gym.networks.distributions import DiagonalGaussian, MultiDiscrete, SquashedGaussian
from lmpg.gym.networks.mlp_policy import ActionSpec, MLPPolicy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.gym.rollouts import make_source
from lmpg.gym.settings import GymSettings
from lmpg.runtime.seeding import generator
from lmpg.settings.section import UserError
from tests.support.planted import catches

DISCRETE, CONTINUOUS = ActionSpec("discrete", 3), ActionSpec("continuous", 2)


def made(actions: ActionSpec, critic: bool = True, **settings) -> MLPPolicy:
    policy = MLPPolicy(4, actions, PolicySettings(**settings), critic)
    policy.initialise(generator("policy"))
    return policy


@catches(
    "log(1 − tanh² u) computed as it stands",
    "squashed log-probs without tanh's slope, or with its sign turned",
)
@pytest.mark.parametrize(("u", "expected"), [(0.5, -0.8037095), (10.0, -32.305233)])
def test_squashed_logprobs_are_those_of_g18(u, expected):
    squashed = SquashedGaussian(1, 0.0)
    logprobs, _ = squashed.logprobs_and_entropy(torch.zeros(1, 1), torch.tensor([[u]]))
    assert logprobs.item() == pytest.approx(expected, abs=3e-6)


def test_squashed_logprobs_are_torchs_own_where_tanh_can_be_undone():
    squashed = SquashedGaussian(2, -0.3)
    means, u = torch.randn(2, 50, 2, generator=generator(0), dtype=torch.float64)
    base = distributions.Normal(means, squashed.log_std.detach().double().exp())
    oracle = distributions.TransformedDistribution(base, distributions.TanhTransform())
    found, _ = squashed.logprobs_and_entropy(means, u)
    torch.testing.assert_close(found, oracle.log_prob(u.tanh()).sum(-1), rtol=1e-6, atol=1e-6)


@catches("squashed entropy is that of the Gaussian")
@pytest.mark.parametrize(("mean", "log_std"), [(0.0, -1.0), (1.5, -0.5), (-3.0, 0.0)])
def test_squashed_entropy_is_the_mean_surprise(mean, log_std):
    squashed = SquashedGaussian(2, log_std)
    means = torch.tensor([[mean, 0.3]])
    drawn = means + math.exp(log_std) * torch.randn(200_000, 2, generator=generator(0))
    logprobs, entropy = squashed.logprobs_and_entropy(means.expand_as(drawn), drawn)
    error = logprobs.std().item() / 200_000**0.5
    assert entropy[0].item() == pytest.approx(-logprobs.mean().item(), abs=3 * error)


def test_the_widest_squashed_gaussian_is_not_the_most_random():
    means = torch.zeros(1, 1)
    sizes = [
        SquashedGaussian(1, log_std).logprobs_and_entropy(means, means)[1].item()
        for log_std in (-2.0, -0.14, 0.5)
    ]
    assert sizes[1] > max(sizes[0], sizes[2])
    assert sizes[1] < math.log(2)  # the uniform distribution's over (−1, 1)


def test_squashed_entropy_has_the_gradient_of_its_mean():
    squashed = SquashedGaussian(1, 0.0)
    mean = torch.tensor([[1.0]], requires_grad=True)
    _, entropy = squashed.logprobs_and_entropy(mean, torch.zeros(1, 1))
    (slope,) = torch.autograd.grad(entropy.sum(), mean)
    ends = [
        squashed.logprobs_and_entropy(mean + shift, torch.zeros(1, 1))[1].item()
        for shift in (-0.05, 0.05)
    ]
    assert slope.item() == pytest.approx((ends[1] - ends[0]) / 0.1, abs=1e-3)


@catches("squashed actions cut, or not stretched to the bounds")
def test_squashed_actions_fill_the_bounds_and_only_tanh_gets_there():
    space = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64)
    actions = Actions.of(space, "x", squash=True)
    u = np.array([[0.0, 0.0], [50.0, -50.0], [0.5, 0.5]])
    found = actions.for_env(u)
    half = math.tanh(0.5)
    np.testing.assert_allclose(found, [[0, 5], [2, 0], [2 * half, 5 + 5 * half]])
    cut = Actions.of(space, "x", squash=False).for_env(u)
    np.testing.assert_allclose(cut, [[0, 0], [2, 0], [0.5, 0.5]])


@pytest.mark.parametrize("env_id", ["lmpg/LQR-v0", "CartPole-v1"])
def test_squashing_needs_bounds(env_id):
    space = gymnasium.make("CartPole-v1").action_space
    if env_id == "lmpg/LQR-v0":
        space = spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises(UserError, match=r"policy\.squash brings actions into their bounds"):
        Actions.of(space, env_id, squash=True)


def source_of(env_id: str, **policy):
    s = GymSettings[PPO].model_validate(
        {
            "env": {"id": env_id, "num_envs": 2},
            "policy": policy,
            "algorithm": {"kl_coef": 0},
            "update": {"rollout_size": 64, "minibatch_size": 64, "microbatch_size": 64},
            "evaluation": {"size": 2},
            "run": {"total_timesteps": 64},
        }
    )
    return make_source(s.env, s.policy, s.algorithm, s.update, s.evaluation, s.run)


def test_squashed_actions_are_recorded_as_drawn_and_reach_the_environment_squashed():
    source = source_of("Pendulum-v1", squash=True, initial_log_std=1.0)
    try:
        rollout = source.collect(1).rollout
        assert rollout.inputs["actions"].abs().max() > 2
        sent = source.runner.actions.for_env(np.array([[0.5]], np.float32))
        assert sent.item() == pytest.approx(2 * math.tanh(0.5), abs=1e-6)
        assert rollout.logprobs_BT.isfinite().all()
    finally:
        source.runner.close()


@catches("evaluation cuts what training squashes")
def test_evaluation_squashes_too():
    class Sent(gymnasium.Env):
        """Ends at once and pays what it was sent."""

        observation_space = spaces.Box(-1, 1, (4,), np.float32)
        action_space = spaces.Box(-2, 2, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(4, np.float32), {}

        def step(self, action):
            return np.zeros(4, np.float32), float(action[0]), True, False, {}

    gymnasium.register("LmpgSent-v0", Sent)
    try:
        policy = made(ActionSpec("continuous", 1), squash=True, hidden_sizes=())
        weights = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5])  # μ = .5
        torch.nn.utils.vector_to_parameters(weights, policy.actor.parameters())
        episodes = play(Agent(policy, Normaliser()), EnvSettings(id="LmpgSent-v0"), 2, seed=0)
    finally:
        del gymnasium.registry["LmpgSent-v0"]
    np.testing.assert_allclose(episodes.returns, 2 * math.tanh(0.5), rtol=1e-6)


@catches("a fixed σ is trained")
def test_a_fixed_deviation_is_saved_but_not_trained():
    fixed, learned = DiagonalGaussian(2, -0.5, fixed=True), DiagonalGaussian(2, -0.5)
    assert list(fixed.parameters()) == []
    assert [p.shape for p in learned.parameters()] == [(2,)]
    assert torch.equal(fixed.state_dict()["log_std"], learned.state_dict()["log_std"])
    point = torch.zeros(1, 2)
    for a, b in zip(
        fixed.logprobs_and_entropy(point, point), learned.logprobs_and_entropy(point, point)
    ):
        torch.testing.assert_close(a, b)


@catches("entropy of the first of the joint choices alone")
def test_joint_choices_have_the_logprobs_and_entropy_of_independent_categoricals():
    joint = MultiDiscrete((3, 2))
    outputs = torch.randn(7, 5, generator=generator(0))
    actions = torch.stack([torch.arange(7) % 3, torch.arange(7) % 2], -1)
    first = distributions.Categorical(logits=outputs[:, :3])
    second = distributions.Categorical(logits=outputs[:, 3:])
    logprobs, entropy = joint.logprobs_and_entropy(outputs, actions)
    expected = first.log_prob(actions[:, 0]) + second.log_prob(actions[:, 1])
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, first.entropy() + second.entropy())
    known = joint.as_torch(outputs)
    torch.testing.assert_close(known.log_prob(actions), expected)
    others = joint.as_torch(outputs.flip(0))
    apart = distributions.kl_divergence(
        first, distributions.Categorical(logits=outputs.flip(0)[:, :3])
    ) + distributions.kl_divergence(
        second, distributions.Categorical(logits=outputs.flip(0)[:, 3:])
    )
    torch.testing.assert_close(distributions.kl_divergence(known, others), apart)


@catches("logits of joint choices overlap, or one uniform draws them all")
def test_joint_samples_have_the_frequencies_of_each_dimension_independently():
    joint = MultiDiscrete((3, 2))
    outputs = np.log(np.array([[0.5, 0.3, 0.2, 0.9, 0.1]], dtype=np.float32)).repeat(20_000, 0)
    drawn = joint.sample(outputs, joint.noise(1, 20_000, generator(0))[0])
    shares = np.zeros((3, 2))
    np.add.at(shares, tuple(drawn.T), 1 / 20_000)
    np.testing.assert_allclose(shares, np.outer([0.5, 0.3, 0.2], [0.9, 0.1]), atol=0.0106)
    assert joint.mode(outputs[:1]).tolist() == [[0, 0]]


def test_joint_choices_are_shifted_and_shaped_as_the_environment_takes_them():
    space = spaces.MultiDiscrete(np.array([[3, 2], [4, 2]]), start=np.array([[0, 1], [5, 0]]))
    actions = Actions.of(space, "x", squash=False)
    assert actions.spec == ActionSpec("multi-discrete", 4, (3, 2, 4, 2))
    sent = actions.for_env(np.array([[2, 1, 3, 0]]))
    assert sent.tolist() == [[[2, 2], [8, 0]]]
    assert space.contains(sent[0])


def test_joint_choices_are_learned_in_an_environment():
    class Lock(gymnasium.Env):
        """Pays 1 for each digit of (2, 0, 1) that is right."""

        observation_space = spaces.Discrete(1)
        action_space = spaces.MultiDiscrete([3, 2, 2])

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return 0, {}

        def step(self, action):
            return 0, float((action == [2, 0, 1]).sum()), True, False, {}

    gymnasium.register("LmpgLock-v0", Lock)
    try:
        source = source_of("LmpgLock-v0", hidden_sizes=())
        optimizer = torch.optim.SGD(source.policy.parameters(), lr=0.5)
        for _ in range(20):
            source.runner.num_steps = 0
            rollout = source.collect(1).rollout
            new = source.policy.evaluate(rollout.inputs)
            worth = rollout.rewards_BT - rollout.rewards_BT.mean()
            (-(worth * new.logprobs_BT).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert source.evaluate()["return_mean"] == 3
    finally:
        source.runner.close()
        del gymnasium.registry["LmpgLock-v0"]
