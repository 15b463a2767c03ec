"""One uniform number per token, inverted through the distribution's CDF."""

from __future__ import annotations

import torch
from torch import Tensor


def tokens_at(probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The id whose stretch of the cumulative distribution holds u ∈ [0, 1); never one with p = 0.

    probs need not sum to exactly 1: u runs over their true sum. Cumulated in float64.
    """
    cdf_BV = probs_BV.cumsum(1, dtype=torch.float64)
    # u ≤ 1 − 2⁻⁵³ times the total rounds to less than the total: there is always a token above
    target_B1 = uniforms_B.to(cdf_BV)[:, None] * cdf_BV[:, -1:]
    return torch.searchsorted(cdf_BV, target_B1, right=True)[:, 0]
