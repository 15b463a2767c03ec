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


def truncated(probs_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities with those outside the top k, or the top p (nucleus, arXiv 1904.09751), at 0.

    They no longer sum to 1. top_k = 0 and top_p = 1 keep all; the likeliest token always stays.
    """
    if top_k:
        least_B1 = probs_BV.topk(min(top_k, probs_BV.shape[1]), 1).values[:, -1:]
        probs_BV = torch.where(probs_BV >= least_B1, probs_BV, 0.0)
    if top_p < 1:
        sorted_BV, order_BV = probs_BV.sort(1, descending=True)
        before_BV = sorted_BV.cumsum(1) - sorted_BV
        kept_BV = before_BV < top_p * sorted_BV.sum(1, keepdim=True)
        probs_BV = torch.zeros_like(probs_BV).scatter(
            1, order_BV, torch.where(kept_BV, sorted_BV, 0.0)
        )
    return probs_BV
