"""G7, G8, G10: losses and KL estimators against worked numbers, with their gradients."""

import math

import pytest
import torch

from lmpg.functional.kl import (
    doubled_or_halved,
    k1,
    k2,
    k3,
    kl_loss,
    penalised_rewards,
    proportionally_adapted,
)
from lmpg.functional.losses import (
    clipped_squared_error,
    clipped_surrogate,
    log_ratio,
    squared_error,
)
from tests.support.planted import catches


@catches("the clipped surrogate takes the maximum, or clips without the minimum")
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.3, 1.0, -1.2, 0.0),
        (1.3, -1.0, 1.3, 1.3),
        (0.7, 1.0, -0.7, -0.7),
        (0.7, -1.0, 0.8, 0.0),
        (1.0, 1.0, -1.0, -1.0),
    ],
)
def test_clipped_surrogate_gives_the_worked_numbers_of_g7(ratio, advantage, loss, gradient):
    logprob = torch.tensor(math.log(ratio), dtype=torch.float64, requires_grad=True)
    old = torch.zeros((), dtype=torch.float64)
    found = clipped_surrogate(log_ratio(logprob, old), torch.tensor(advantage), 0.2, 0.2)
    found.backward()
    assert found.item() == pytest.approx(loss)
    assert logprob.grad.item() == pytest.approx(gradient)


@catches("upper clip bound ignored")
def test_clip_bounds_are_separate():
    up = torch.tensor(1.5).log()
    assert clipped_surrogate(up, torch.tensor(1.0), 0.2, 0.28).item() == pytest.approx(-1.28)
    down = torch.tensor(0.5).log()
    assert clipped_surrogate(down, torch.tensor(-1.0), 0.1, 0.28).item() == pytest.approx(0.9)


@catches("log-ratio not clamped")
def test_log_ratio_stays_finite_when_exponentiated():
    far = log_ratio(torch.tensor([200.0, -200.0]), torch.zeros(2))
    assert far.tolist() == [20, -20]
    assert far.exp().isfinite().all()


@catches("value loss only clipped, or the minimum")
@pytest.mark.parametrize(
    ("new", "loss", "gradient"), [(0.5, 0.64, 0.0), (-0.5, 2.25, -3.0), (0.1, 0.81, -1.8)]
)
def test_value_clipping_gives_the_worked_numbers_of_g8(new, loss, gradient):
    value = torch.tensor(new, dtype=torch.float64, requires_grad=True)
    found = 2 * clipped_squared_error(value, torch.tensor(0.0), torch.tensor(1.0), 0.2)
    found.backward()
    assert found.item() == pytest.approx(loss)
    assert value.grad.item() == pytest.approx(gradient)


@catches("value loss without its half")
def test_squared_error_is_halved():
    assert squared_error(torch.tensor(3.0), torch.tensor(1.0)) == 2


@catches(
    "KL estimators with the two policies exchanged",
    "k3 with the sign of its log-ratio turned",
)
def test_kl_estimators_give_the_worked_numbers_of_g10():
    p = torch.tensor([0.5, 0.5], dtype=torch.float64)
    q = torch.tensor([0.6, 0.4], dtype=torch.float64)
    expected = {k1: 0.02041100, k2: 0.02075855, k3: 0.02041100}
    for estimator, value in expected.items():
        assert (p * estimator(p.log(), q.log())).sum().item() == pytest.approx(value, abs=5e-9)


def test_kl_of_two_normals_is_that_of_g10():
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    p, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(1.0, 2.0)
    density = p.log_prob(x).exp() * (x[1] - x[0])
    # k3's log-ratio is clamped at 20, which costs it the mass of q beyond |x| = 7
    for estimator, tolerance in ((k1, 1e-6), (k3, 2e-3)):
        found = (density * estimator(p.log_prob(x), q.log_prob(x))).sum().item()
        assert found == pytest.approx(0.443147, abs=tolerance)


@catches("adaptive penalty the wrong way round")
@pytest.mark.parametrize(
    ("kl", "expected"), [(0.151, 2.0), (0.149, 1.0), (0.067, 1.0), (0.066, 0.5)]
)
def test_adaptive_penalty_doubles_and_halves_as_in_g10(kl, expected):
    assert doubled_or_halved(1.0, kl, target=0.1) == expected


@catches("the KL controller's error not clipped")
@pytest.mark.parametrize(
    ("kl", "expected"), [(6.0, 1.1), (30.0, 1.1), (5.5, 1.05), (5.0, 1.0), (4.75, 0.975), (0, 0.9)]
)
def test_proportional_control_is_that_of_the_rlhf_paper(kl, expected):
    assert proportionally_adapted(1.0, kl, 5.0, 100, 200) == pytest.approx(expected)


def test_k1_in_the_loss_is_refused_by_the_formula_too():
    with pytest.raises(ValueError, match="zero expected gradient"):
        kl_loss(*torch.zeros(3, 2), "k1")


@catches(
    "k3 in the loss without its ratio (forward KL) or with a detached one",
    "k2 in the loss without its ratio off policy",
)
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_in_the_loss_have_the_gradient_of_the_reverse_kl_off_policy_too(estimator):
    theta = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.1, 0.4, 0.2], dtype=torch.float64).log_softmax(0)
    ref = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    logprobs = theta.log_softmax(0)
    (exact,) = torch.autograd.grad((logprobs.exp() * (logprobs - ref)).sum(), theta)
    logprobs = theta.log_softmax(0)
    expected_loss = (old.exp() * kl_loss(logprobs, old, ref, estimator)).sum()
    (found,) = torch.autograd.grad(expected_loss, theta)
    torch.testing.assert_close(found, exact)


@catches("plain k3 keeps the ratio")
def test_plain_k3_in_the_loss_has_the_gradient_of_the_forward_kl_on_policy():
    theta = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    logprobs = theta.log_softmax(0)
    (exact,) = torch.autograd.grad((ref.exp() * (ref - logprobs)).sum(), theta)
    logprobs = theta.log_softmax(0)
    old = logprobs.detach()
    expected_loss = (old.exp() * kl_loss(logprobs, old, ref, "plain_k3")).sum()
    (found,) = torch.autograd.grad(expected_loss, theta)
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(kl_loss(logprobs, old + 1, ref, "plain_k3"), k3(logprobs, ref))


@catches("KL penalty that pays for leaving the reference")
def test_kl_penalty_lowers_the_reward_where_the_policy_left_the_reference():
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    logprobs = torch.tensor([[-1.0, -2.0, -3.0]])
    ref = torch.tensor([[-2.0, -2.0, -2.0]])
    mask = torch.tensor([[True, False, True]])
    found = penalised_rewards(rewards, logprobs, ref, mask, 0.1)
    assert found[0].tolist() == pytest.approx([-0.1, 0.0, 1.1])
    assert penalised_rewards(rewards, logprobs, None, mask, 0.0) is rewards
    with pytest.raises(ValueError, match="reference"):
        penalised_rewards(rewards, logprobs, None, mask, 0.1)
