"""Masked statistics and the weights that reduce per-step terms to one loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

ROUNDING = 1e-6
"""A spread below this share of the largest magnitude is float32 rounding, not information; nor is
one below this itself: the log-probs of a KL penalty bring rounding of their own."""

WHITEN_EPS = 1e-8

Reduction = Literal["token_mean", "sequence_mean", "fixed_length"]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` where `mask`; 0 when nothing is masked in. `x` may be inf or NaN elsewhere."""
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance of `x` where `mask`; 0 for fewer than two elements."""
    squares = torch.where(mask, x - masked_mean(x, mask), 0) ** 2
    return squares.sum() / (mask.sum() - 1).clamp(min=1)


def whitened(x: Tensor, mask: Tensor, eps: float) -> Tensor:
    """(x − mean) / (std + eps) over the masked-in elements, 0 elsewhere; std is unbiased.

    A single element, or elements without spread beyond rounding, become 0.
    """
    std = masked_variance(x, mask).sqrt()
    spread = mask & (std > rounding(torch.where(mask, x, 0).abs().max()))
    return torch.where(spread, (x - masked_mean(x, mask)) / (std + eps), 0)


def rounding(largest: Tensor) -> Tensor:
    """The spread up to which numbers as large as this are all the same."""
    return ROUNDING * largest.clamp(min=1)


def loss_weights(mask_BT: Tensor, reduction: Reduction, length: int) -> Tensor:
    """Weights w [B, T] with loss = Σ term·w, counted over the whole global minibatch.

    token_mean: every step in the mask weighs the same. sequence_mean: the mean over a row's steps,
    then over the rows that have any; these weights sum to 1. fixed_length: the sum over a row's
    steps divided by `length`, the longest that a row can be, then the mean over the rows that
    have any (arXiv 2503.20783, section 3.2). Weights are 0 where the mask is.
    """
    counts = mask_BT.to(torch.float32)
    if reduction == "token_mean":
        return counts / counts.sum().clamp(min=1)
    lengths_B1 = counts.sum(1, keepdim=True)
    rows = (lengths_B1 > 0).sum().clamp(min=1)
    if reduction == "fixed_length":
        return counts / length / rows
    return counts / lengths_B1.clamp(min=1) / rows
