"""Ratios of whole responses, whose single tokens may be far, and the bound on what they cost."""

import math

import pytest
import torch

from lmpg.algorithms import ALGORITHMS
from lmpg.types import Evaluation, Minibatch
from tests.support.planted import catches


def evaluated_row(name, differences, advantage, **fields):
    """(the policy term of each step, its gradient by log-prob) of one response, given each step's
    log π − log π_old."""
    old = torch.full((1, len(differences)), -1.0, dtype=torch.float64)
    new = (old + torch.tensor([differences])).requires_grad_()
    ones = torch.ones(1, len(differences)).bool()
    batch = Minibatch({}, ones, old, torch.full_like(old, advantage))
    term = ALGORITHMS[name](kl_coef=0, **fields).loss_terms(Evaluation(new, old), batch)["policy"]
    (gradient,) = torch.autograd.grad(term.mean(), new)
    return term.detach()[0].tolist(), gradient[0].tolist()


@catches("GSPO: single log-ratios cut at ±20 before their mean")
def test_a_far_token_enters_gspos_mean_as_it_is():
    differences = [0.0] * 15 + [-40.0]
    losses, gradient = evaluated_row("gspo", differences, 1.0, clip=0.2, clip_high=0.3)
    ratio = math.exp(-40 / 16)
    assert losses == pytest.approx([-ratio] * 16)
    assert gradient == pytest.approx([-ratio / 16] * 16)
    far = evaluated_row("gspo", [2000.0], -1.0, clip=None, clip_high=None)
    assert far[0] == pytest.approx([math.exp(20)])  # the mean itself has a guard


@catches("off-policy: single log-ratios cut at ±20 before their product")
@pytest.mark.parametrize(("level", "first"), [("sequence", -5), ("decision", -20)])
def test_a_far_token_enters_the_product_of_ratios_as_it_is(level, first):
    """Of −35 and 30 the product is −5; the first alone is cut at −20."""
    losses, _ = evaluated_row("off_policy", [-35.0, 30.0], 1.0, ratio=level, ratio_cap=None)
    assert losses == pytest.approx([math.exp(first) * 36, math.exp(-5) * -29])


@catches("GMPO: log-ratios clipped on the side that earns", "GMPO: the clip of the wrong sign")
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_gmpo_weighs_a_response_by_the_geometric_mean_of_clipped_ratios(advantage):
    """min(ρA, clip(ρ) A) of each token, the product of their sizes, its root, the sign of A:
    arXiv 2507.20673, written out."""
    differences, low, high = [0.1, 0.9, -0.2, -0.8], 0.4, 0.5
    losses, gradient = evaluated_row("gmpo", differences, advantage, clip=low, clip_high=high)
    product, alive = 1.0, []
    for x in differences:
        ratio, clipped = math.exp(x), min(max(math.exp(x), math.exp(-low)), math.exp(high))
        product *= abs(min(ratio * advantage, clipped * advantage) / advantage)
        alive.append(ratio * advantage <= clipped * advantage)
    expected = -advantage * product**0.25
    assert losses == pytest.approx([expected] * 4)
    assert gradient == pytest.approx([expected / 4 * kept for kept in alive])


@catches("GMPO: single log-ratios cut at ±20 before their mean")
def test_a_far_token_enters_gmpos_mean_as_it_is():
    losses, _ = evaluated_row("gmpo", [0.0] * 7 + [-40.0], 1.0)
    assert losses == pytest.approx([-math.exp(-5)] * 8)


CLIPPED = ("ppo", "grpo", "gspo", "gmpo", "reinforce_plus_plus")


def test_every_method_that_clips_takes_a_dual_clip():
    clipping = {name for name in ALGORITHMS if "clip" in ALGORITHMS[name].model_fields}
    assert clipping == set(CLIPPED)
    assert all(ALGORITHMS[name]().dual_clip is None for name in CLIPPED)


@catches("dual clip left out of a method")
@pytest.mark.parametrize("name", CLIPPED[1:])
def test_a_dual_clip_bounds_what_a_bad_step_that_became_likely_costs(name):
    bounded, gradient = evaluated_row(name, [2.0, 2.0], -1.0, dual_clip=3.0)
    assert bounded == pytest.approx([3.0, 3.0])
    assert gradient == [0.0, 0.0]
    plain, _ = evaluated_row(name, [2.0, 2.0], -1.0)
    assert plain == pytest.approx([math.exp(2)] * 2)
    assert evaluated_row(name, [0.0], 1.0, dual_clip=3.0) == evaluated_row(name, [0.0], 1.0)
