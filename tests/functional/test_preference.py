"""The Bradley–Terry loss and what is counted over pairs, against worked numbers and slow loops."""

import math

import pytest
import torch

from lmpg.functional.preference_losses import (
    bradley_terry,
    conservative_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    pair_accuracy,
    pairs_by_label,
    robust_loss,
    sigmoid_loss,
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
