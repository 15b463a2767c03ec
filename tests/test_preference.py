"""The Bradley–Terry loss and what is counted over pairs, against worked numbers and slow loops."""

import math

import pytest
import torch

from lmpg.functional.preference import all_comparisons, bradley_terry, won


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


def test_ties_are_half_won():
    found = won(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0]))
    assert found.tolist() == [1.0, 0.5, 0.0]


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
    higher, lower = all_comparisons(scores, labels)
    assert list(zip(higher.tolist(), lower.tolist())) == expected


def test_the_share_won_is_the_area_under_the_roc_curve():
    scores = torch.tensor([0.1, 0.4, 0.35, 0.8])
    labels = torch.tensor([0, 0, 1, 1])
    assert won(*all_comparisons(scores, labels)).mean().item() == pytest.approx(0.75)
