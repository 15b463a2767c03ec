"""The losses of the newer methods against slow loops, closed forms and enumeration."""

import itertools
import math

import pytest
import torch

from lmpg.algorithms import ALGORITHMS
from lmpg.algorithms.cispo import CISPO
from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.gspo import GSPO
from lmpg.algorithms.off_policy import OffPolicy
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.rloo import RLOO
from lmpg.algorithms.sapo import SAPO
from lmpg.functional.losses import (
    dual_clipped,
    importance_weights,
    sequence_log_ratio,
    soft_gated_surrogate,
)
from lmpg.functional.masking import loss_weights
from lmpg.types import Evaluation, Minibatch
from tests.support.planted import catches

ROWS, STEPS = 8, 5

PENALISED = [name for name in ALGORITHMS if "kl_coef" in ALGORITHMS[name].model_fields]


def batch_of(seed=0, spread=0.0):
    """(the policy's log-probs with gradient, a minibatch of rows of different lengths)."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 1, 3, 5, 2, 4, 5, 3])
    mask = torch.arange(STEPS) < lengths[:, None]
    old, ref, advantages, values = torch.randn(4, ROWS, STEPS, generator=g, dtype=torch.float64)
    new = (old + spread * torch.randn(ROWS, STEPS, generator=g)).requires_grad_()
    batch = Minibatch({}, mask, old, advantages * mask, values, values + 1, ref)
    return new, batch


def gradient(algorithm, new, batch):
    """Of the whole loss without regularisers, by log-prob."""
    evaluation = Evaluation(new, torch.zeros_like(new), batch.old_values_BT)
    term = algorithm.loss_terms(evaluation, batch)["policy"]
    weights = loss_weights(batch.mask_BT, algorithm.reduction, STEPS)
    (found,) = torch.autograd.grad((torch.where(batch.mask_BT, term, 0) * weights).sum(), new)
    return found


@catches(
    "policy gradient with the wrong sign",
    "GSPO: the sum of log-ratios instead of their mean",
    "GSPO: padding counted",
    "importance weights keep their gradient",
    "SAPO without the factor 4/τ",
)
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "fixed_length"])
@pytest.mark.parametrize("name", PENALISED)
def test_every_loss_starts_with_reinforces_gradient(name, reduction):
    """G9; a loss of whole responses shares their advantage, as GRPO's credit does."""
    new, batch = batch_of()
    shared = batch.advantages_BT[:, :1] * batch.mask_BT
    batch = Minibatch(**{**vars(batch), "advantages_BT": shared})
    algorithm = ALGORITHMS[name](reduction=reduction, kl_coef=0)
    expected = -shared * loss_weights(batch.mask_BT, reduction, STEPS)
    torch.testing.assert_close(gradient(algorithm, new, batch), expected.double())


@catches("dual clip on positive advantages too")
@pytest.mark.parametrize("fields", [{"clip": None}, {"clip": None, "dual_clip": 3.0}])
def test_ppo_without_clipping_starts_there_too(fields):
    new, batch = batch_of()
    expected = -batch.advantages_BT * loss_weights(batch.mask_BT, "token_mean", STEPS)
    torch.testing.assert_close(gradient(PPO(**fields), new, batch), expected.double())


def test_gspo_weighs_a_response_by_its_mean_ratio():
    new, batch = batch_of(spread=0.02)
    new = new.detach()
    found = GSPO(clip=0.01, clip_high=0.015).loss_terms(Evaluation(new, new), batch)["policy"]
    for b in range(ROWS):
        steps = [t for t in range(STEPS) if batch.mask_BT[b, t]]
        logs = [float(new[b, t] - batch.old_logprobs_BT[b, t]) for t in steps]
        ratio = math.exp(sum(logs) / len(logs))
        for t in steps:
            advantage = float(batch.advantages_BT[b, t])
            clipped = min(max(ratio, 0.99), 1.015)
            expected = -min(ratio * advantage, clipped * advantage)
            assert found[b, t].item() == pytest.approx(expected)


def test_a_mean_log_ratio_ignores_what_lies_behind_the_end():
    logs = torch.tensor([[1.0, 3.0, 99.0]])
    mask = torch.tensor([[True, True, False]])
    assert sequence_log_ratio(logs, mask)[0, :2].tolist() == [2, 2]


def test_cispo_caps_the_ratio_itself_and_keeps_every_gradient():
    new, batch = batch_of(spread=2.0)
    found = gradient(CISPO(ratio_cap=1.5, reduction="token_mean"), new, batch)
    ratios = (new - batch.old_logprobs_BT).exp().detach()
    assert (ratios > 1.5).any()
    weights = loss_weights(batch.mask_BT, "token_mean", STEPS)
    torch.testing.assert_close(found, -ratios.clamp(max=1.5) * batch.advantages_BT * weights)


@catches("CISPO's cap may be below 1")
@pytest.mark.parametrize("algorithm", [CISPO, OffPolicy])
def test_a_cap_below_one_which_was_meant_as_a_distance_is_refused(algorithm):
    with pytest.raises(ValueError, match="ratio_cap"):
        algorithm(ratio_cap=0.2)


@catches("SAPO: temperatures exchanged")
@pytest.mark.parametrize(("advantage", "tau"), [(0.7, 2.0), (-1.3, 3.0)])
def test_sapo_fades_by_the_temperature_of_the_advantages_sign(advantage, tau):
    log_ratio = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    loss = soft_gated_surrogate(log_ratio, torch.tensor(advantage), 2.0, 3.0)
    ratio = math.exp(0.4)
    gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
    assert loss.item() == pytest.approx(-advantage * gate * 4 / tau)
    loss.backward()
    assert log_ratio.grad.item() == pytest.approx(-advantage * ratio * 4 * gate * (1 - gate))


def test_sapos_defaults_fade_sooner_where_the_advantage_is_negative():
    assert SAPO().tau_negative > SAPO().tau_positive == 1.0


@pytest.mark.parametrize(
    ("loss", "advantage", "expected"), [(8.0, -1.0, 3.0), (2.0, -1.0, 2.0), (-8.0, 1.0, -8.0)]
)
def test_dual_clip_bounds_the_loss_of_bad_steps_alone(loss, advantage, expected):
    found = dual_clipped(torch.tensor(loss), torch.tensor(advantage), 3.0)
    assert found.item() == expected


@catches("fixed_length divides by the response's own length")
def test_dr_grpos_reduction_divides_by_the_longest_possible_response():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    weights = loss_weights(mask, "fixed_length", 10)
    assert weights[0].tolist() == pytest.approx([0.05, 0.05, 0, 0])
    assert weights[1].sum().item() == pytest.approx(0.2)


def two_step_problem(seed=0):
    """π and μ over 3 first and 3 second actions (which depend on the first), and rewards."""
    g = torch.Generator().manual_seed(seed)
    theta, mu = torch.randn(2, 4, 3, generator=g, dtype=torch.float64)
    return theta.requires_grad_(), mu.log_softmax(1), torch.rand(3, 3, generator=g).double()


def trajectories(theta, mu, rewards):
    """Every (a, b): (π's log-probs [9, 2], μ's, the reward at the end, μ's probability)."""
    pi = theta.log_softmax(1)
    pairs = list(itertools.product(range(3), repeat=2))
    new = torch.stack([torch.stack([pi[0, a], pi[1 + a, b]]) for a, b in pairs])
    old = torch.stack([torch.stack([mu[0, a], mu[1 + a, b]]) for a, b in pairs])
    return new, old, torch.stack([rewards[a, b] for a, b in pairs]), old.sum(1).exp()


def expected_gradient(theta, mu, rewards, level, advantage):
    new, old, paid, probability = trajectories(theta, mu, rewards)
    weights = importance_weights(new - old, torch.ones(9, 2).bool(), level, None)
    loss = -(probability[:, None] * weights * advantage(new, paid) * new).sum()
    return -torch.autograd.grad(loss, theta)[0]


def exact_gradient(theta, mu, rewards):
    new, _, paid, _ = trajectories(theta, mu, rewards)
    return torch.autograd.grad((new.sum(1).exp() * paid).sum(), theta)[0]


def sampled_return(new, paid):
    return paid[:, None].expand(9, 2)


def action_values(new, paid):
    """Q of π: the first action's is the mean over what π does next."""
    second = new[:, 1].exp().detach()
    first = (second * paid).view(3, 3).sum(1).repeat_interleave(3)
    return torch.stack([first, paid], 1)


@catches("products of ratios not taken")
@pytest.mark.parametrize(
    ("level", "advantage"), [("sequence", sampled_return), ("decision", action_values)]
)
def test_whole_products_of_ratios_are_unbiased_for_samples_of_another_policy(level, advantage):
    problem = two_step_problem()
    found = expected_gradient(*problem, level, advantage)
    torch.testing.assert_close(found, exact_gradient(*problem))


def test_the_one_step_ratio_is_biased():
    problem = two_step_problem()
    found = expected_gradient(*problem, "token", sampled_return)
    assert (found - exact_gradient(*problem)).abs().max() > 0.02


def test_a_cap_bounds_every_weight():
    new, batch = batch_of(spread=3.0)
    algorithm = OffPolicy(ratio="sequence", ratio_cap=2.0)
    free = gradient(OffPolicy(ratio="sequence", ratio_cap=None), new, batch)
    capped = gradient(algorithm, new, batch)
    plain = (batch.advantages_BT * loss_weights(batch.mask_BT, "token_mean", STEPS)).abs()
    assert (capped.abs() <= 2 * plain + 1e-12).all()
    assert (free.abs() > 2 * plain + 1e-12).any()


@pytest.mark.parametrize("name", ["cispo", "off_policy"])
def test_weights_carry_no_gradient_of_their_own(name):
    new, batch = batch_of(spread=0.3)
    ratios = (new - batch.old_logprobs_BT).exp()
    found = gradient(ALGORITHMS[name](ratio_cap=100.0, reduction="token_mean"), new, batch)
    weights = loss_weights(batch.mask_BT, "token_mean", STEPS)
    torch.testing.assert_close(found, -(ratios * batch.advantages_BT).detach() * weights)


def test_the_kl_penalty_in_the_loss_joins_every_algorithm():
    new, batch = batch_of(spread=0.3)
    for name in set(PENALISED) - {"raft"}:  # which refuses it: its batch is a choice
        made = ALGORITHMS[name](kl_coef=0.5, kl_in="loss", kl_estimator="k2")
        terms = made.loss_terms(Evaluation(new, new, batch.old_values_BT), batch)
        x = new - batch.ref_logprobs_BT
        expected = 0.5 * (new - batch.old_logprobs_BT).exp() * x.square() / 2
        torch.testing.assert_close(terms["kl"], expected, msg=name)


def test_kl_in_the_reward_is_part_of_a_groups_scores():
    for algorithm in (RLOO(kl_coef=0.5, group_size=2), GRPO(kl_coef=0.5, kl_in="reward")):
        assert "ratios" not in RLOO(kl_coef=0.5).needs
        assert "kl" not in algorithm.loss_terms(*_evaluated())


def _evaluated():
    new, batch = batch_of()
    return Evaluation(new, new, batch.old_values_BT), batch


@pytest.mark.parametrize("name", PENALISED)
def test_policy_value_and_entropy_depend_on_one_thing_each(name):
    """The trainer takes their gradients in one call."""
    new, batch = batch_of(spread=0.1)
    leaves = [new, torch.zeros_like(new), batch.old_values_BT.clone()]
    leaves = [x.detach().double().requires_grad_() for x in leaves]
    terms = ALGORITHMS[name](kl_coef=0, entropy_coef=0.1).loss_terms(Evaluation(*leaves), batch)
    for term, place in (("policy", 0), ("entropy", 1), ("value", 2)):
        if term in terms:
            grads = torch.autograd.grad(terms[term].sum(), leaves, allow_unused=True)
            assert [i for i, x in enumerate(grads) if x is not None] == [place]
