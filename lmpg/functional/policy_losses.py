"""Per-step policy losses: minimise them to follow the policy gradient."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """log π − log π_old, clamped to ±20 so that its exponential stays finite."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def policy_gradient(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """−A log π (Williams 1992, "Simple statistical gradient-following algorithms")."""
    return -advantages * logprobs


def clipped_surrogate(
    log_ratios: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """−min(ρA, clip(ρ, 1 − clip_low, 1 + clip_high) A) with ρ = exp(log_ratios).

    arXiv 1707.06347, eq. 7; the two bounds may differ as in arXiv 2503.14476, eq. 10.
    No gradient where a step already moved past the clip in the direction of its advantage.
    """
    ratios = log_ratios.exp()
    clipped = ratios.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratios * advantages, clipped * advantages)
