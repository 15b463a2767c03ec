"""pass@k against counting all choices, and intervals against how often they hold the truth."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
import torch

from lmpg.functional.sampled_estimates import bootstrap_interval, pass_at_k
from tests.support.planted import catches

GOLDEN = {(10, 3, 1): 0.3, (10, 3, 5): 11 / 12, (10, 3, 8): 1.0, (200, 1, 100): 0.5}


@catches("1 − (1 − c/n)^k, which is biased", "C(n−c, k) / C(n, k) without the 1 −")
@pytest.mark.parametrize(("case", "expected"), GOLDEN.items())
def test_pass_at_k_has_the_numbers_of_the_paper(case, expected):
    n, c, k = case
    found = pass_at_k(torch.tensor([c]), torch.tensor([n]), k)
    assert found.item() == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(1 - comb(n - c, k) / comb(n, k), abs=1e-12)


def test_pass_at_k_is_the_share_of_all_choices_of_k_that_hold_one_that_passes():
    for n in range(1, 8):
        for c in range(n + 1):
            answers = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                chosen = list(combinations(answers, k))
                share = sum(map(any, chosen)) / len(chosen)
                found = pass_at_k(torch.tensor([c]), torch.tensor([n]), k)
                assert found.item() == pytest.approx(share, abs=1e-12)


def test_pass_at_k_stays_a_number_where_binomials_overflow_and_is_none_of_too_few_samples():
    many = pass_at_k(torch.tensor([0, 5000, 1]), torch.tensor([5000, 5000, 5000]), 1000)
    assert many.tolist() == pytest.approx([0.0, 1.0, 0.2])
    few = pass_at_k(torch.tensor([2, 3]), torch.tensor([3, 4]), 4)
    assert few.isnan().tolist() == [True, False]


@catches("the interval of single values instead of their mean", "resampling without replacement")
def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    random = torch.Generator().manual_seed(3)
    held = []
    for trial in range(300):
        values = torch.rand(60, generator=random, dtype=torch.float64) ** 2  # mean 1/3
        low, high = bootstrap_interval(values, resamples=1000, seed=trial)
        held.append(low <= 1 / 3 <= high)
        assert high - low < 0.25
    assert 0.90 <= sum(held) / len(held) <= 0.98


def test_an_interval_leaves_out_what_is_missing_and_is_the_same_each_time():
    values = torch.tensor([1.0, float("nan"), 0.0, 1.0, 0.0])
    first = bootstrap_interval(values)
    assert first == bootstrap_interval(values[~values.isnan()]) == bootstrap_interval(values)
    assert all(end != end for end in bootstrap_interval(values[1:2]))
    assert bootstrap_interval(torch.tensor([0.5])) == (0.5, 0.5)
