"""Importance weights between the engine that sampled, μ, and the training forward of the same
policy, π_old, which rounds otherwise. They multiply the policy's loss; π/π_old is another ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from lmpg.functional.losses import MAX_LOG_RATIO


def truncated_weights(log_ratios: Tensor, cap: float) -> Tensor:
    """min(π_old/μ, C) of log(π_old/μ), without gradient (truncated importance sampling; Yao et al.
    2025, "Your efficient RL framework secretly brings you off-policy RL training"; the estimator:
    Ionides 2008, "Truncated importance sampling")."""
    return _ratios(log_ratios).clamp(max=cap)


def masked_weights(log_ratios: Tensor, floor: float, cap: float) -> Tensor:
    """π_old/μ where that is in [α, β], and 0 elsewhere, of log(π_old/μ), without gradient.

    IcePop (arXiv 2510.18855): a step on which the two disagree by more teaches nothing. It stays
    in the loss's denominator, as one that is clipped does.
    """
    ratios = _ratios(log_ratios)
    return torch.where((ratios >= floor) & (ratios <= cap), ratios, 0)


def _ratios(log_ratios: Tensor) -> Tensor:
    return log_ratios.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
