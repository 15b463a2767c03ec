"""Methods that learn from rollouts: TRPO, the natural gradient, the natural actor-critic."""

from __future__ import annotations

import math

import pytest
import torch

from lmpg.gym.classic.batches import Steps
from lmpg.gym.classic.natural_actor_critic import NaturalActorCritic
from lmpg.gym.classic.natural_policy_gradient import NaturalPolicyGradient
from lmpg.gym.classic.trpo import TRPO
from lmpg.gym.networks.mlp_policy import ActionSpec, MLPPolicy
from lmpg.gym.networks.parameters import (
    actor_parameters,
    distribution,
    flat,
    gradient,
    logprobs,
    move,
)
from lmpg.runtime.seeding import generator
from lmpg.types import Rollout
from tests.support.corridor import Tabular
from tests.support.planted import catches

RAW = {"damping": 0.0, "whiten_advantages": False, "critic_epochs": 0, "lam": 1.0}
NATURAL = [
    NaturalPolicyGradient(step_size=1.0, cg_iterations=60, **RAW),
    NaturalPolicyGradient(step_size=1.0, solver="inverse", **RAW),
    NaturalActorCritic(step_size=1.0, **RAW),
]


def bandit(logits=(0.0, 0.0)) -> MLPPolicy:
    """Two arms; θ are the two logits."""
    policy = Tabular(1, ActionSpec("discrete", 2), critic=True, aliased=True)
    policy.actor.bias.data = torch.tensor(logits)
    return policy


def pulls(policy: MLPPolicy, actions: list[int], rewards: tuple[float, float]) -> Rollout:
    """One pull per row."""
    taken = torch.tensor(actions)[:, None]
    inputs = {"observations": torch.ones(len(actions), 1, 1), "actions": taken}
    ones = torch.ones(len(actions), 1, dtype=torch.bool)
    with torch.no_grad():
        now = policy.evaluate(inputs)
    return Rollout(
        inputs=inputs, mask_BT=ones, logprobs_BT=now.logprobs_BT,
        rewards_BT=torch.tensor(rewards)[actions][:, None], terminated_BT=ones, ended_BT=ones,
        scorable_B=ones[:, 0], values_BT=now.values_BT, next_values_BT=torch.ones(len(actions), 1),
    )  # fmt: skip


def updated(method, policy, rollout):
    return method.update(policy, rollout, method.initial_state(policy, 0), generator(0))


@catches("the plain gradient taken for the natural one")
@pytest.mark.parametrize("method", NATURAL, ids=["cg", "inverse", "compatible critic"])
def test_the_natural_gradient_step_of_g12(method):
    policy = bandit()
    updated(method, policy, pulls(policy, [0, 1], (1.0, 0.0)))
    assert policy.actor.bias.tolist() == pytest.approx([0.5, -0.5], abs=1e-5)
    assert policy.actor.bias.softmax(0)[0].item() == pytest.approx(0.731059, abs=1e-5)


@catches("damping left out of the Fisher matrix")
@pytest.mark.parametrize("method", NATURAL, ids=["cg", "inverse", "compatible critic"])
def test_damping_is_added_to_the_fisher_information_whose_eigenvalue_is_a_half(method):
    policy = bandit()
    damped = type(method)(**method.model_dump() | {"damping": 0.1})
    updated(damped, policy, pulls(policy, [0, 1], (1.0, 0.0)))
    assert policy.actor.bias.tolist() == pytest.approx([0.25 / 0.6, -0.25 / 0.6], abs=1e-5)


@catches("TRPO's step √(δ/sᵀFs), without the factor 2")
def test_the_trpo_step_of_g12():
    policy = bandit()
    found = updated(TRPO(**RAW), policy, pulls(policy, [0, 1], (1.0, 0.0)))
    assert found["policy/step_scale"] == pytest.approx(0.282843, abs=1e-5)
    assert policy.actor.bias.softmax(0)[0].item() == pytest.approx(0.570243, abs=1e-5)
    assert found["policy/approx_kl"] == pytest.approx(0.00996684, abs=1e-5)


@catches("TRPO without a line search, or one that ignores the measured KL")
def test_trpo_measures_the_kl_of_the_old_policy_to_the_new_one_and_steps_back_until_it_fits():
    policy = bandit((1.5, -1.5))
    old = policy.actor.bias.detach().softmax(0)
    pulled = pulls(policy, [0] * 19 + [1], (0.0, 1.0))
    found = updated(TRPO(max_kl=0.3, **RAW), policy, pulled)
    new = policy.actor.bias.detach().softmax(0)
    forward, backward = (old * (old / new).log()).sum(), (new * (new / old).log()).sum()
    assert forward < 0.3 < backward
    assert found["policy/approx_kl"] == pytest.approx(float(forward), abs=1e-6)
    full = updated(TRPO(max_kl=0.03, **RAW), bandit((1.5, -1.5)), pulled)["policy/step_scale"]
    assert 0 < found["policy/step_scale"] < 0.9 * math.sqrt(10) * full


def test_trpo_stays_where_no_step_is_an_improvement():
    policy = bandit((1.0, 0.0))
    found = updated(TRPO(**RAW), policy, pulls(policy, [0, 1, 0], (0.0, 0.0)))
    assert found["policy/step_scale"] == 0
    assert policy.actor.bias.tolist() == [1.0, 0.0]


def test_trpos_surrogate_starts_with_reinforces_gradient():  # G9
    s = torch.randn(50, 3, generator=generator("s"))
    policy = linear(torch.randn(3, 3, generator=generator(1)))
    steps, θ = some_steps(policy, s), actor_parameters(policy)
    log_π = logprobs(policy, steps.observations, steps.actions)
    expected = gradient((log_π * steps.advantages).mean(), θ)
    found = gradient(TRPO()._objective(policy, steps)()[0], θ)
    torch.testing.assert_close(found, expected)


@catches("TRPO's line search ignores the surrogate, or leaves θ at its last try")
def test_trpos_line_search_takes_no_step_downhill_and_goes_back_to_where_it_started():
    policy, method = bandit(), TRPO(**RAW)
    steps = Steps.of(pulls(policy, [0, 1], (1.0, 0.0)), 1.0, 1.0, whiten=False)
    downhill = torch.tensor([-0.5, 0.5])
    judged = method._objective(policy, steps)
    assert method._line_search(policy, torch.tensor(0.1), downhill, judged) == (0.0, 0.0)
    assert policy.actor.bias.tolist() == [0, 0]


def some_steps(policy: MLPPolicy, observations: torch.Tensor) -> Steps:
    n = len(observations)
    actions = torch.randint(0, 3, (n,), generator=generator("actions"))
    advantages = torch.randn(n, generator=generator("advantages"))
    with torch.no_grad():
        old = logprobs(policy, observations, actions)
    zeros = torch.zeros(n)
    return Steps(observations, actions, advantages, zeros, old, zeros)


def linear(weight: torch.Tensor) -> MLPPolicy:
    policy = Tabular(3, ActionSpec("discrete", 3), critic=False, aliased=False)
    policy.actor.weight.data = weight.clone()
    return policy


M = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.5, 1.0], [0.3, 0.0, 1.0]])


def in_two_parametrisations(improve) -> list[torch.Tensor]:
    """Action probabilities before and after a step, and after it where θ' = θ M⁻¹."""
    s, W = torch.randn(200, 3, generator=generator("s")), torch.randn(3, 3, generator=generator(1))
    plain, other = linear(W), linear(W @ torch.linalg.inv(M))
    before = distribution(plain, s).probs.detach()
    improve(plain, some_steps(plain, s))
    improve(other, some_steps(other, s @ M.T))
    return [before, distribution(plain, s).probs, distribution(other, s @ M.T).probs]


def vanilla(policy: MLPPolicy, steps: Steps) -> None:
    log_π = logprobs(policy, steps.observations, steps.actions)
    θ = actor_parameters(policy)
    move(θ, gradient((log_π * steps.advantages).mean(), θ))


@pytest.mark.parametrize(
    "method", [*NATURAL, TRPO(max_kl=0.005, **RAW)], ids=["cg", "inverse", "critic", "trpo"]
)
def test_the_policy_after_a_natural_step_does_not_depend_on_how_it_is_parametrised(method):
    before, reached, same = in_two_parametrisations(method.improve)
    assert (reached - before).abs().max() > 0.05
    torch.testing.assert_close(same, reached, atol=2e-3, rtol=0)


def test_the_policy_after_a_plain_gradient_step_does():
    _, reached, other = in_two_parametrisations(vanilla)
    assert (reached - other).abs().max() > 0.05


def test_the_compatible_critics_weights_are_the_natural_gradient_of_the_same_sample():
    observations = torch.randn(4000, 3, generator=generator("observations"))
    policy = linear(torch.randn(3, 3, generator=generator("W")))
    with torch.no_grad():
        probs = distribution(policy, observations).probs
        actions = torch.multinomial(probs, 1, generator=generator("drawn"))[:, 0]
    steps = some_steps(policy, observations)
    steps = Steps(observations, actions, steps.advantages, *[steps.returns] * 3)
    moved = []
    for method in (NATURAL[0], NATURAL[2]):
        copy = linear(policy.actor.weight.detach())
        method.improve(copy, steps)
        moved.append(flat(actor_parameters(copy)) - flat(actor_parameters(policy)))
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.99


@catches("a fitted critic learns whitened returns, or forgets its moments")
def test_the_critic_is_fitted_to_unwhitened_returns_and_its_moments_go_on():
    policy = bandit()
    method = NaturalPolicyGradient(
        step_size=1e-6, critic_learning_rate=0.05, critic_epochs=200, critic_minibatch_size=2
    )
    state = method.initial_state(policy, 0)
    for _ in range(2):
        rollout = pulls(policy, [0, 1, 0, 1], (5.0, 7.0))
        method.update(policy, rollout, state, generator(0))
    assert policy.values(torch.ones(1)).item() == pytest.approx(6, abs=0.3)
    assert state["critic"][0]["step"].item() == 2 * 200 * 2
