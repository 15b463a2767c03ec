"""The fit of gold scores over √KL."""

from __future__ import annotations

import math

import pytest

from lmpg.functional.gold_frontier import Frontier, frontier
from tests.support.planted import catches


@catches("the fit over KL itself, not its root", "the peak at exp(α/β − 1) nats")
def test_the_fit_finds_the_curve_that_the_points_lie_on_and_its_peak():
    true = Frontier(0.2, 0.9, 0.4)
    kls = [0.0, 0.5, 1, 2, 4, 9, 16, 40]
    found = frontier(kls, [true.at(kl) for kl in kls])
    assert found == pytest.approx(true)
    around = [found.peak * x for x in (0.98, 1, 1.02)]
    golds = [found.at(kl) for kl in around]
    assert golds[1] == max(golds)
    assert true.at(4) == pytest.approx(0.2 + 2 * (0.9 - 0.4 * math.log(2)))


def test_few_points_make_no_curve_and_one_that_only_rises_has_no_peak():
    assert frontier([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]) is None
    assert Frontier(0, 1.0, -0.1).peak is None
