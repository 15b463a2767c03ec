"""One uniform number per token, inverted through the distribution's CDF."""

from __future__ import annotations

import torch
from torch import Tensor


def tokens_at(probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The id whose stretch of the cumulative distribution holds u ∈ [0, 1); never one with p = 0.

    probs need not sum to exactly 1: u runs over their true sum. Cumulated in float64.
    """
    cdf_BV = probs_BV.cumsum(1, dtype=torch.float64)
    total_B1 = cdf_BV[:, -1:]
    target_B1 = uniforms_B.to(cdf_BV)[:, None] * total_B1
    # u · total can round up to the total itself, beyond the last token
    target_B1 = torch.minimum(target_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(cdf_BV, target_B1, right=True)[:, 0]
