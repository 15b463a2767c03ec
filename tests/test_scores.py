"""Score functions ∇log π: closed forms of linear policies against autograd."""

from __future__ import annotations

import math

import pytest
import torch

from lmpg.models.mlp import ActionSpec, MLPPolicy
from lmpg.models.settings import PolicySettings
from lmpg.training.seeding import generator

DISCRETE, CONTINUOUS = ActionSpec("discrete", 3), ActionSpec("continuous", 2)


def made(actions: ActionSpec, **settings) -> MLPPolicy:
    policy = MLPPolicy(4, actions, PolicySettings(**settings), critic=False)
    policy.initialise(generator("policy"))
    return policy


def gradients(policy: MLPPolicy, features: torch.Tensor, actions: torch.Tensor):
    logprob = policy.evaluate({"observations": features, "actions": actions}).logprobs_BT
    return torch.autograd.grad(logprob.sum(), [policy.actor[0].weight, policy.actor[0].bias])


def test_the_score_of_a_linear_softmax_is_its_features_less_their_mean():
    """φ(s, a) − E_b[φ(s, b)] with φ(s, a) the state's features in the row of the action."""
    policy, features = made(DISCRETE, hidden_sizes=()), torch.randn(4, generator=generator(0))
    with torch.no_grad():
        policy.actor[0].weight.copy_(torch.randn(3, 4, generator=generator(1)))
        pi = policy.actor(features).softmax(-1)
    for a in range(3):
        weight, bias = gradients(policy, features, torch.tensor(a))
        phi = [torch.outer(torch.eye(3)[b], features) for b in range(3)]
        expected = phi[a] - sum(p * phi[b] for b, p in enumerate(pi))
        torch.testing.assert_close(weight, expected)
        torch.testing.assert_close(bias, torch.eye(3)[a] - pi)


@pytest.mark.parametrize("log_std", ["learned", "fixed"])
def test_the_score_of_a_linear_gaussian_is_its_error_times_the_features(log_std):
    """(a − μ)φ/σ² for the mean's weights, and ((a − μ)/σ)² − 1 for log σ."""
    settings = {"hidden_sizes": (), "initial_log_std": -0.7, "log_std": log_std}
    policy, features = made(CONTINUOUS, **settings), torch.randn(4, generator=generator(0))
    actions, sigma = torch.tensor([0.4, -1.1]), math.exp(-0.7)
    error = actions - policy.actor(features).detach()
    weight, bias = gradients(policy, features, actions)
    torch.testing.assert_close(weight, torch.outer(error, features) / sigma**2)
    torch.testing.assert_close(bias, error / sigma**2)
    if log_std == "learned":
        logprob = policy.evaluate({"observations": features, "actions": actions}).logprobs_BT
        (slope,) = torch.autograd.grad(logprob, policy.distribution.log_std)
        torch.testing.assert_close(slope, (error / sigma) ** 2 - 1)
    else:
        assert "distribution.log_std" not in dict(policy.named_parameters())


def test_scores_are_zero_on_average():
    policy, features = made(DISCRETE), torch.randn(4, generator=generator(0))
    pi = policy.actor(features).softmax(-1).detach()
    total = sum(
        p
        * torch.autograd.grad(
            policy.evaluate({"observations": features, "actions": torch.tensor(a)}).logprobs_BT,
            policy.actor[0].weight,
        )[0]
        for a, p in enumerate(pi)
    )
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-7)
