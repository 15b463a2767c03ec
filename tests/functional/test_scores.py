"""Score functions ∇log π: closed forms of linear policies against autograd."""

from __future__ import annotations

import math

import pytest
import torch

from lmpg.gym.networks.mlp_policy import ActionSpec, MLPPolicy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.runtime.seeding import generator

DISCRETE, CONTINUOUS = ActionSpec("discrete", 3), ActionSpec("continuous", 2)


def made(actions: ActionSpec, **settings) -> MLPPolicy:
    policy = MLPPolicy(4, actions, PolicySettings(**settings), critic=False)
    policy.initialise(generator("policy"))
    return policy


def score(policy: MLPPolicy, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """∇ log π with respect to the actor's weights, then its biases, as one vector."""
    logprob = policy.evaluate({"observations": features, "actions": actions}).logprobs_BT
    slopes = torch.autograd.grad(logprob.sum(), list(policy.actor.parameters()))
    return torch.cat([slope.reshape(-1) for slope in slopes])


def test_the_score_of_a_linear_softmax_is_its_features_less_their_mean():
    """φ(s, a) − E_b[φ(s, b)] with φ(s, a) the state's features in the row of the action."""
    policy, features = made(DISCRETE, hidden_sizes=()), torch.randn(4, generator=generator(0))
    weights = torch.randn(15, generator=generator(1))
    torch.nn.utils.vector_to_parameters(weights, policy.actor.parameters())
    with torch.no_grad():
        pi = policy.actor(features).softmax(-1)
    torch.testing.assert_close(pi, (weights[:12].view(3, 4) @ features + weights[12:]).softmax(-1))
    rows = [torch.outer(torch.eye(3)[b], features).reshape(-1) for b in range(3)]
    phi = [torch.cat([row, torch.eye(3)[b]]) for b, row in enumerate(rows)]
    for a in range(3):
        expected = phi[a] - sum(p * phi[b] for b, p in enumerate(pi))
        torch.testing.assert_close(score(policy, features, torch.tensor(a)), expected)


@pytest.mark.parametrize("log_std", ["learned", "fixed"])
def test_the_score_of_a_linear_gaussian_is_its_error_times_the_features(log_std):
    """(a − μ)φ/σ² for the mean's weights, and ((a − μ)/σ)² − 1 for log σ."""
    settings = {"hidden_sizes": (), "initial_log_std": -0.7, "log_std": log_std}
    policy, features = made(CONTINUOUS, **settings), torch.randn(4, generator=generator(0))
    actions, sigma = torch.tensor([0.4, -1.1]), math.exp(-0.7)
    error = actions - policy.actor(features).detach()
    expected = torch.cat([torch.outer(error, features).reshape(-1), error]) / sigma**2
    torch.testing.assert_close(score(policy, features, actions), expected)
    if log_std == "learned":
        logprob = policy.evaluate({"observations": features, "actions": actions}).logprobs_BT
        (slope,) = torch.autograd.grad(logprob, policy.distribution.log_std)
        torch.testing.assert_close(slope, (error / sigma) ** 2 - 1)
    else:
        assert "distribution.log_std" not in dict(policy.named_parameters())


def test_scores_are_zero_on_average():
    policy, features = made(DISCRETE), torch.randn(4, generator=generator(0))
    pi = policy.actor(features).softmax(-1).detach()
    total = sum(p * score(policy, features, torch.tensor(a)) for a, p in enumerate(pi))
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-6)
