"""Weights between the engine that sampled and the training forward, and what the update makes of
them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from lmpg.algorithms import ALGORITHMS
from lmpg.functional.sampler_correction import masked_weights, truncated_weights
from lmpg.types import Credit
from tests.support.bandit import BanditPolicy, bandit_rollout, updater_for
from tests.support.planted import catches

# π_old/μ of six tokens
RATIOS = torch.tensor([0.2, 0.5, 0.9, 1.0, 2.5, 9.0], dtype=torch.float64)


@catches("the sampler's probability over the trainer's", "weights below 1 cut off as well")
def test_truncated_weights_are_the_ratio_up_to_the_cap():
    found = truncated_weights(RATIOS.log(), cap=2.0)
    assert found.tolist() == pytest.approx([0.2, 0.5, 0.9, 1.0, 2.0, 2.0])


@catches("steps within the bounds weigh 1", "weights above the cap cut to it")
def test_masked_weights_are_the_ratio_within_the_bounds_and_nothing_beyond():
    found = masked_weights(RATIOS.log(), floor=0.5 - 1e-9, cap=5.0)
    assert found.tolist() == pytest.approx([0, 0.5, 0.9, 1.0, 2.5, 0])


@catches("a gradient through the weights")
def test_weights_are_constants_and_finite():
    far = torch.tensor([800.0, -800.0], requires_grad=True)
    for weights in (truncated_weights(far, 1e9), masked_weights(far, 0.0, 1e9)):
        assert weights.isfinite().all()
        assert not weights.requires_grad


def drawn_by_another(policy, rows, seed):
    """A rollout that an engine with other probabilities has sampled, and these."""
    other = BanditPolicy()
    other.theta.data += torch.tensor([-1.5, 0.8, 0.8])
    rollout = bandit_rollout(other, rows, seed, 1)
    with torch.no_grad():
        old = policy.evaluate(rollout.inputs).logprobs_BT
    return replace(rollout, logprobs_BT=old, sampler_logprobs_BT=rollout.logprobs_BT)


def step_on(rollout, weights):
    """What one plain gradient step of REINFORCE on known advantages moves."""
    policy, rows = BanditPolicy(), len(rollout.mask_BT)
    updater = updater_for(
        policy, rollout_size=rows, minibatch_size=rows, microbatch_size=rows, epochs=1
    )
    updater.sampler_weights = weights
    updater.optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    updater.optimizer.param_groups[0]["scale"] = 1 / updater.settings.learning_rate
    credit = Credit(rollout.rewards_BT - 0.7, rollout.rewards_BT)
    updater.update(ALGORITHMS["reinforce"](kl_coef=0.0), rollout, credit, 1)
    return policy.theta.detach() - BanditPolicy().theta


@catches("weights not applied in the update", "weights of the sampler over the trainer")
def test_the_expected_gradient_is_that_of_the_policys_own_samples():
    """Σ_a μ(a) w(a) A(a) ∇log π(a) = Σ_a π(a) A(a) ∇log π(a)."""
    policy, rows = BanditPolicy(), 40_000
    own = step_on(bandit_rollout(policy, rows, 0, 1), None)
    other = drawn_by_another(policy, rows, 0)
    corrected = step_on(other, partial(truncated_weights, cap=1e9))
    torch.testing.assert_close(corrected, own, atol=0.02, rtol=0)
    assert (step_on(other, None) - own).abs().max() > 0.1


@catches("masked steps counted as clipped")
def test_steps_that_teach_nothing_are_not_counted_as_clipped():
    policy = BanditPolicy()
    updater = updater_for(policy, rollout_size=64, minibatch_size=64, epochs=1)
    updater.sampler_weights = partial(masked_weights, floor=0.8, cap=5.0)
    rollout = drawn_by_another(policy, 64, 0)
    algorithm = ALGORITHMS["ppo"](kl_coef=0.0)
    found = updater.update(algorithm, rollout, algorithm.assign_credit(rollout), 1)
    assert found["policy/clip_fraction"] == 0
