"""θ as one vector: scores in closed form, Fisher-vector products, and what solves with them."""

from __future__ import annotations

import math

import pytest
import torch

from lmpg.functional.conjugate_gradients import conjugate_gradients
from lmpg.functional.least_squares import least_squares
from lmpg.gym.networks.mlp_policy import ActionSpec, MLPPolicy
from lmpg.gym.networks.parameters import (
    actor_parameters,
    critic_parameters,
    distribution,
    fisher_product,
    flat,
    grad_logprobs,
    gradient,
    logprobs,
    mean_kl,
    move,
    place,
)
from lmpg.gym.networks.settings import PolicySettings
from lmpg.runtime.seeding import generator
from tests.support.planted import catches

DISCRETE, CONTINUOUS = ActionSpec("discrete", 3), ActionSpec("continuous", 2)


def made(actions: ActionSpec, *hidden: int) -> MLPPolicy:
    policy = MLPPolicy(4, actions, PolicySettings(hidden_sizes=hidden), critic=True)
    for i, p in enumerate(policy.parameters()):
        torch.nn.init.normal_(p, 0, 0.5, generator=generator("weights", i))
    return policy


def observed(n: int) -> torch.Tensor:
    return torch.randn(n, 4, generator=generator("observations"))


def test_actor_and_critic_share_no_parameter_and_the_vector_goes_there_and_back():
    policy = made(CONTINUOUS, 5)
    θ, w = actor_parameters(policy), critic_parameters(policy)
    assert flat(θ).numel() == (4 + 1) * 5 + (5 + 1) * 2 + 2  # two layers and log σ
    assert {id(p) for p in θ} | {id(p) for p in w} == {id(p) for p in policy.parameters()}
    vector = flat(θ)
    move(θ, torch.ones_like(vector))
    torch.testing.assert_close(flat(θ), vector + 1)
    place(θ, vector)
    assert torch.equal(flat(θ), vector)


def test_the_score_of_linear_softmax_is_feature_less_expected_feature():
    policy, s, a = made(DISCRETE), observed(6), torch.arange(6) % 3
    π = distribution(policy, s).probs.detach()
    chosen = torch.nn.functional.one_hot(a, 3)
    expected = (chosen - π)[:, :, None] * s[:, None, :]
    found = grad_logprobs(policy, s, a)
    torch.testing.assert_close(found[:, :12], expected.flatten(1))
    torch.testing.assert_close(found[:, 12:], chosen - π)


def test_the_score_of_a_linear_gaussian_is_its_closed_form():
    policy, s = made(CONTINUOUS), observed(6)
    a = torch.randn(6, 2, generator=generator("actions"))
    μ, σ = policy.actor(s).detach(), policy.distribution.log_std.detach().exp()
    found = grad_logprobs(policy, s, a)
    of_weights = ((a - μ) / σ**2)[:, :, None] * s[:, None, :]
    of_log_σ = ((a - μ) / σ) ** 2 - 1
    expected = [of_log_σ, of_weights.flatten(1), (a - μ) / σ**2]
    torch.testing.assert_close(found, torch.cat(expected, 1))


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_the_scores_are_the_gradients_of_each_step_alone(hidden):
    policy, s, a = made(DISCRETE, *hidden), observed(4), torch.tensor([0, 2, 1, 1])
    one_by_one = [
        gradient(logprobs(policy, s[i], a[i]), actor_parameters(policy)) for i in range(4)
    ]
    torch.testing.assert_close(grad_logprobs(policy, s, a), torch.stack(one_by_one))


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_the_fisher_product_is_the_expected_outer_product_of_scores(hidden):
    policy, s = made(DISCRETE, *hidden), observed(7)
    π = distribution(policy, s).probs.detach()
    F = 0
    for a in range(3):
        ψ = grad_logprobs(policy, s, torch.full((7,), a))
        F = F + (ψ * π[:, a : a + 1]).T @ ψ / 7
    v = torch.randn(F.shape[0], generator=generator("v"))
    torch.testing.assert_close(fisher_product(policy, s)(v), F @ v, atol=1e-5, rtol=1e-4)


def test_the_fisher_information_of_a_gaussians_log_sigma_is_two():
    policy = made(CONTINUOUS)
    for p in actor_parameters(policy):
        p.requires_grad_(p is policy.distribution.log_std)
    found = fisher_product(policy, observed(5))(torch.ones(2))
    torch.testing.assert_close(found, torch.full((2,), 2.0))


@catches("TRPO's KL the other way round, KL(new ‖ old)")
def test_the_kl_is_that_of_the_old_to_the_new_distribution_of_g10():
    policy = made(CONTINUOUS)
    with torch.no_grad():
        old = policy.distribution.as_torch(torch.zeros(1, 2))
    sigma = policy.distribution.log_std.detach().exp()
    policy.distribution.log_std.data += math.log(2)
    new = policy.distribution.as_torch(sigma[None])
    assert mean_kl(old, new).item() == pytest.approx(2 * 0.443147, abs=1e-5)


@catches("conjugate gradients with a wrong step or β")
def test_conjugate_gradients_solve_in_as_many_steps_as_there_are_unknowns():
    root = torch.randn(6, 6, generator=generator("A"), dtype=torch.float64)
    A, b = root @ root.T + torch.eye(6), torch.arange(6.0, dtype=torch.float64)
    torch.testing.assert_close(conjugate_gradients(A.matmul, b, 6, 0.0), torch.linalg.solve(A, b))


def test_conjugate_gradients_of_a_singular_matrix_have_least_norm():
    A, b = torch.tensor([[0.25, -0.25], [-0.25, 0.25]]), torch.tensor([0.25, -0.25])
    torch.testing.assert_close(
        conjugate_gradients(A.matmul, b, 10, 1e-5), torch.tensor([0.5, -0.5])
    )


@catches("ridge regression in its dual form without N")
@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_least_squares_is_the_minimum_with_more_rows_or_more_columns(rows, damping):
    φ = torch.randn(rows, 6, generator=generator("φ"), dtype=torch.float64)
    y = torch.randn(rows, generator=generator("y"), dtype=torch.float64)
    w = least_squares(φ, y, damping)
    slope = φ.T @ (φ @ w - y) / rows + damping * w
    torch.testing.assert_close(slope, torch.zeros_like(w), atol=1e-10, rtol=0)
    torch.testing.assert_close(w, torch.linalg.pinv(φ) @ y) if damping == 0 else None
