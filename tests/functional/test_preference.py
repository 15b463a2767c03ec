"""The Bradley–Terry loss and what is counted over pairs, against worked numbers and slow loops."""

import math

import pytest
import torch

from lmpg.functional.preference_losses import (
    apo_down_loss,
    apo_zero_loss,
    bco_loss,
    bco_pair_loss,
    bradley_terry,
    conservative_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    log_odds,
    nca_pair_loss,
    odds_ratio_loss,
    pair_accuracy,
    pairs_by_label,
    robust_loss,
    sigmoid_loss,
    sppo_hard_loss,
)
from tests.support.planted import catches


@catches("sign of the Bradley–Terry difference swapped")
@pytest.mark.parametrize(
    ("chosen", "rejected", "loss", "gradient"),
    [
        (0.7, 0.7, math.log(2), -0.5),
        (1.3, 0.4, 0.3411539, -0.2890505),
        (0.4, 1.3, 1.2411539, -0.7109495),
        (-200.0, 200.0, 400.0, -1.0),
    ],
)
def test_bradley_terry_gives_worked_numbers(chosen, rejected, loss, gradient):
    better = torch.tensor(chosen, dtype=torch.float64, requires_grad=True)
    worse = torch.tensor(rejected, dtype=torch.float64, requires_grad=True)
    found = bradley_terry(better, worse)
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert better.grad.item() == pytest.approx(gradient, abs=1e-6)
    assert worse.grad.item() == pytest.approx(-gradient, abs=1e-6)


@catches("ties count as losses")
def test_ties_are_half_won():
    found = pair_accuracy(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0]))
    assert found.tolist() == [1.0, 0.5, 0.0]


@catches("answers with equal labels compared")
def test_all_comparisons_are_every_pair_with_different_labels():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12, generator=generator).round(decimals=1)
    labels = torch.randint(0, 3, (12,), generator=generator)
    expected = [
        (scores[i].item(), scores[j].item())
        for i in range(12)
        for j in range(12)
        if labels[i] > labels[j]
    ]
    higher, lower = pairs_by_label(scores, labels)
    assert list(zip(higher.tolist(), lower.tolist())) == expected


def test_the_share_won_is_the_area_under_the_roc_curve():
    scores = torch.tensor([0.1, 0.4, 0.35, 0.8])
    labels = torch.tensor([0, 0, 1, 1])
    assert pair_accuracy(*pairs_by_label(scores, labels)).mean().item() == pytest.approx(0.75)


def test_dpo_gives_the_worked_number_of_g11():
    difference = torch.tensor(0.5, dtype=torch.float64) - -0.5
    assert sigmoid_loss(0.1 * difference).item() == pytest.approx(0.644397, abs=1e-6)


def test_conservative_loss_is_least_where_the_labels_doubt_is_met():
    z = torch.tensor(math.log(0.8 / 0.2), dtype=torch.float64, requires_grad=True)
    conservative_loss(z, smoothing=0.2).backward()
    assert z.grad.item() == pytest.approx(0, abs=1e-12)


@catches("robust DPO without its 1 − 2ε")
@pytest.mark.parametrize("z", [-1.5, 0.0, 2.0])
def test_over_labels_that_are_sometimes_wrong_robust_loss_means_that_of_the_true_ones(z):
    z, wrong = torch.tensor(z, dtype=torch.float64), 0.3
    seen = (1 - wrong) * robust_loss(z, smoothing=wrong) + wrong * robust_loss(-z, smoothing=wrong)
    assert seen.item() == pytest.approx(sigmoid_loss(z).item())


def test_hinge_and_ipo_give_worked_numbers():
    assert hinge_loss(torch.tensor([0.25, 1.0, 3.0])).tolist() == [0.75, 0.0, 0.0]
    assert ipo_loss(torch.tensor([1.25, 0.25]), beta=0.4).tolist() == [0.0, 1.0]


@catches("KTO's KL baseline with a gradient", "KTO's weights swapped")
def test_kto_gives_worked_numbers_and_its_drift_no_gradient():
    ratio = torch.tensor([2.0, 2.0, -1.0], dtype=torch.float64, requires_grad=True)
    baseline = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    good = torch.tensor([True, False, False])
    loss = kto_loss(ratio, good, baseline, beta=0.5, weights=(2.0, 3.0))
    expected = [2 / (1 + math.exp(0.5)), 3 / (1 + math.exp(-0.5)), 3 / (1 + math.exp(1.0))]
    assert loss.tolist() == pytest.approx(expected)
    loss.sum().backward()
    assert baseline.grad is None
    assert [g > 0 for g in ratio.grad.tolist()] == [False, True, True]


@catches(
    "APO-zero's chosen answer pushed down",
    "APO-down's chosen answer pushed up",
    "NCA's noise weighted by 1",
    "SPPO's loser drawn to +1/(2β)",
)
@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (apo_zero_loss, (0.6464821, 1.1954903)),
        (apo_down_loss, (0.9134841, 1.1401404)),
        (nca_pair_loss, (1.2069310, 1.6159523)),
        (lambda chosen, rejected: bco_pair_loss(chosen, rejected, 0.0), (0.7873387, 1.8356268)),
    ],
)
def test_losses_of_single_rewards_give_the_numbers_of_a_peer(loss, expected):
    # TRL 1.16.0, its DPO trainer: log-ratios (2, −1) with β = 0.5, (−0.5, 1.5) with β = 0.4
    chosen = torch.tensor([0.5 * 2.0, 0.4 * -0.5], dtype=torch.float64)
    rejected = torch.tensor([0.5 * -1.0, 0.4 * 1.5], dtype=torch.float64)
    assert loss(chosen, rejected).tolist() == pytest.approx(expected, abs=1e-7)


def test_sppo_gives_the_numbers_of_a_peer():
    for delta, beta, expected in (((2.0, -1.0), 0.5, 1.0), ((-0.5, 1.5), 0.4, 10.625)):
        delta_21 = torch.tensor(delta).view(2, 1)
        assert sppo_hard_loss(delta_21, beta=beta).item() == pytest.approx(expected)


@catches("BCO's shift taken from one answer of a pair alone", "BCO's shift with the wrong sign")
def test_bco_measures_rewards_from_its_shift():
    reward, good = torch.tensor([1.0, -0.5]).double(), torch.tensor([True, False])
    each = bco_loss(reward, good, 0.25)
    assert each.tolist() == pytest.approx([0.3868710, 0.3868710], abs=1e-7)
    pair = bco_pair_loss(reward[0], reward[1], 0.25)
    assert pair.item() == pytest.approx(each.sum().item())
    assert bco_loss(reward + 3, good, 3.25).tolist() == pytest.approx(each.tolist())


@catches("odds without 1 − p", "the sign of the log odds ratio swapped")
def test_the_odds_ratio_gives_worked_numbers_and_stays_finite_where_a_token_is_certain():
    means = torch.tensor([[-0.5, -1.2, 0.0], [-1.5, -0.3, -40.0]], dtype=torch.float64)
    means.requires_grad_()
    assert log_odds(means)[0, :2].tolist() == pytest.approx([0.4327521, -0.8416176], abs=1e-7)
    loss = odds_ratio_loss(means)
    assert loss[:2].tolist() == pytest.approx([0.1708592, 2.0322950], abs=1e-7)
    loss.sum().backward()
    assert means.grad.isfinite().all()
    assert (means.grad[0, :2] < 0).all()
    assert (means.grad[1, :2] > 0).all()
