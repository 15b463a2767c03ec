"""How good an estimator is against an unbiased one, by N independent estimates of each.

Where the true gradient is not known and N is small, the mean of the estimates is mostly noise: its
squared length is too long by variance / N. Every square and product of means here is the mean of
the products of *different* estimates (a U-statistic), which is unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FEWEST = 4
"""Estimates without which there are no standard errors."""
SEEN = 2
"""Standard errors by which a mean's squared length must exceed 0; below, its direction is noise."""

Of = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Figure(NamedTuple):
    """A measured number and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Quality:
    """An estimator's figures; lengths in units of that of the unbiased gradient.

    squared_length: of its mean. variance: of one estimate, the trace of the covariance;
    relative_variance: over that of the unbiased one, which is known after few estimates.
    squared_bias: the squared distance between its mean and the unbiased one. cosine: of the angle
    between these two; single: of that between one estimate and the unbiased mean, from the mean
    square of an estimate's length. noise: variance over its own mean's squared length. A factor,
    which the step size can make good, leaves the last three alone. seen: whether both means stand
    out of the noise.
    """

    squared_length: Figure
    variance: Figure
    relative_variance: Figure
    squared_bias: Figure
    cosine: Figure
    single: Figure
    noise: Figure
    seen: bool

    @property
    def length(self) -> Figure:
        """Of its mean."""
        return _root(self.squared_length)

    @property
    def bias(self) -> Figure:
        """The distance between its mean and the unbiased one."""
        return _root(self.squared_bias)

    @property
    def angle(self) -> Figure:
        """Degrees between its mean and the unbiased one."""
        return _degrees(self.cosine)

    @property
    def single_angle(self) -> Figure:
        """Degrees between one estimate and the unbiased mean."""
        return _degrees(self.single)


def quality(samples_NK: Tensor, unbiased_NK: Tensor) -> Quality:
    """The figures of the estimates `samples_NK` beside the unbiased ones of the same rollouts.

    Standard errors are the jackknife's, over the rollouts. Of a square that is 0 in truth it says
    up to √2 times too much.
    """
    pairs = ((samples_NK, samples_NK), (samples_NK, unbiased_NK), (unbiased_NK, unbiased_NK))
    own, cross, true = (_products(a @ b.T) for a, b in pairs)
    squares = _without_each((samples_NK * samples_NK).sum(1))

    others = _without_each((unbiased_NK * unbiased_NK).sum(1))

    def figure(of: Of) -> Figure:
        return _jackknifed(of(squares, own, cross, true))

    length, unit = figure(lambda s, a, c, t: a), figure(lambda s, a, c, t: t)
    return Quality(
        squared_length=figure(lambda s, a, c, t: a / t),
        variance=figure(lambda s, a, c, t: (s - a) / t),
        relative_variance=figure(lambda s, a, c, t: (s - a) / (others - t)),
        squared_bias=figure(lambda s, a, c, t: (a - 2 * c + t) / t),
        cosine=figure(lambda s, a, c, t: c / (a * t).sqrt()),
        single=figure(lambda s, a, c, t: c / (s * t).sqrt()),
        noise=figure(lambda s, a, c, t: (s - a) / a),
        seen=min(length.value - SEEN * length.error, unit.value - SEEN * unit.error) > 0,
    )


def _products(matrix_NN: Tensor) -> Tensor:
    """The mean product of two different estimates: of all, then without each in turn, [1 + N]."""
    N, diagonal_N = len(matrix_NN), matrix_NN.diagonal()
    total = matrix_NN.sum() - diagonal_N.sum()
    of_each_N = matrix_NN.sum(0) + matrix_NN.sum(1) - 2 * diagonal_N
    return torch.cat([total[None] / (N * (N - 1)), (total - of_each_N) / ((N - 1) * (N - 2))])


def _without_each(x_N: Tensor) -> Tensor:
    """The mean of all, then of all but each in turn, [1 + N]."""
    N, total = len(x_N), x_N.sum()
    return torch.cat([total[None] / N, (total - x_N) / (N - 1)])


def _jackknifed(found: Tensor) -> Figure:
    """The number from all estimates, found[0], and its error from those without each in turn."""
    without_N, N = found[1:], len(found) - 1
    spread = (without_N - without_N.mean()).square().sum() * (N - 1) / N
    return Figure(float(found[0]), float(spread.sqrt()))


def _root(square: Figure) -> Figure:
    """The square root; where the square is within its error of 0, the error is the error's root."""
    value = math.sqrt(max(0.0, square.value))
    if square.value > square.error:
        return Figure(value, square.error / (2 * value))
    return Figure(value, math.sqrt(max(0.0, square.error)))


def _degrees(cosine: Figure) -> Figure:
    """The angle, 0 … 180°; where the cosine is within its error of 1, the error is the angle that
    this error alone would make. NaN where there is no cosine."""
    if math.isnan(cosine.value + cosine.error):
        return Figure(math.nan, math.nan)
    value = math.acos(min(1.0, max(-1.0, cosine.value)))
    if 1 - abs(cosine.value) > cosine.error:
        error = cosine.error / math.sin(value)
    else:
        error = math.acos(max(-1.0, 1 - cosine.error))
    return Figure(math.degrees(value), math.degrees(error))
