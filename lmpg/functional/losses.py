"""Per-step losses: of the policy, to be minimised to follow its gradient, and of the critic."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
RatioLevel = Literal["token", "decision", "sequence"]


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """log π − log π_old, clamped to ±20 so that its exponential stays finite."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def sequence_log_ratio(log_ratios_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean log-ratio over a row's steps (arXiv 2507.18071, eq. 7), the same on each, [B, T].

    Cut the mean where it needs a guard, not the steps: one that became very unlikely counts whole.
    """
    counts_B1 = mask_BT.sum(1, keepdim=True).clamp(min=1)
    mean_B1 = torch.where(mask_BT, log_ratios_BT, 0).sum(1, keepdim=True) / counts_B1
    return mean_B1.expand_as(log_ratios_BT)


def geometric_mean_log_ratio(
    log_ratios_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    clip_low: float | None,
    clip_high: float | None,
) -> Tensor:
    """Mean over a row's steps of clipped log-ratios (arXiv 2507.20673), the same on each.

    [B, T]; min(x, clip_high) where A > 0, max(x, −clip_low) elsewhere: e to the result is the
    geometric mean of the clipped ratios. None for clip_high is the same as clip_low, None for
    clip_low clips nothing.
    """
    if clip_low is not None:
        gains_BT = advantages_BT > 0
        upper = clip_low if clip_high is None else clip_high
        log_ratios_BT = torch.where(
            gains_BT, log_ratios_BT.clamp(max=upper), log_ratios_BT.clamp(min=-clip_low)
        )
    return sequence_log_ratio(log_ratios_BT, mask_BT)


def importance_weights(
    log_ratios_BT: Tensor, mask_BT: Tensor, level: RatioLevel, cap: float | None
) -> Tensor:
    """min(π/μ, cap) of what was sampled from μ, [B, T], without gradient.

    token: of the step alone. decision: the product up to the step, which makes −w·A·log π unbiased
    where A is an advantage of π (Precup, Sutton & Singh 2000, "Eligibility traces for off-policy
    policy evaluation"). sequence: the product over the whole row, unbiased where A is a sampled
    return, whose later steps are μ's as well. The log of the product is cut at ±20, never that of
    a factor.
    """
    steps_BT = torch.where(mask_BT, log_ratios_BT.detach(), 0)
    if level == "decision":
        steps_BT = steps_BT.cumsum(1)
    elif level == "sequence":
        steps_BT = steps_BT.sum(1, keepdim=True).expand_as(steps_BT)
    weights_BT = steps_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return weights_BT if cap is None else weights_BT.clamp(max=cap)


def policy_gradient(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """−A log π (Williams 1992, "Simple statistical gradient-following algorithms")."""
    return -advantages * logprobs


def probability_weighted_nll(logprobs: Tensor) -> Tensor:
    """−sg(π) log π: a likely token weighs more, and the gradient is that of −π (DFT, arXiv
    2508.05629)."""
    return -logprobs.exp().detach() * logprobs


def clipped_surrogate(
    log_ratios: Tensor, advantages: Tensor, clip_low: float | None, clip_high: float | None
) -> Tensor:
    """−min(ρA, clip(ρ, 1 − clip_low, 1 + clip_high) A) with ρ = exp(log_ratios), these cut at ±20.

    arXiv 1707.06347, eq. 7; the two bounds may differ as in arXiv 2503.14476, eq. 10: None for
    clip_high is the same as clip_low, None for clip_low is −ρA (eq. 6). No gradient where a step
    already moved past the clip in the direction of its advantage: where A > 0 only the upper bound
    matters, elsewhere only the lower one, so that one cut of the log-ratios is all.
    """
    low, high = -MAX_LOG_RATIO, MAX_LOG_RATIO
    if clip_low is None:
        return -advantages * log_ratios.clamp(low, high).exp()
    gains = advantages > 0
    upper = torch.where(gains, math.log1p(clip_low if clip_high is None else clip_high), high)
    lower = torch.where(gains, low, math.log1p(-clip_low) if clip_low < 1 else low)
    return -advantages * log_ratios.clamp(lower, upper).exp()


def dual_clipped(losses: Tensor, advantages: Tensor, bound: float) -> Tensor:
    """min(loss, −bound·A) where A < 0, the loss elsewhere (arXiv 1912.09729); bound > 1.

    A step that became very likely although it was bad no longer dominates the batch.
    """
    return torch.where(advantages < 0, torch.minimum(losses, -bound * advantages), losses)


def soft_gated_surrogate(
    log_ratios: Tensor, advantages: Tensor, tau_positive: float, tau_negative: float
) -> Tensor:
    """−A σ(τ(ρ − 1)) 4/τ with τ by the sign of A (arXiv 2511.20347): the gradient fades
    smoothly as ρ leaves 1, where a clip cuts it off."""
    tau = torch.where(advantages > 0, tau_positive, tau_negative)
    return -advantages * torch.sigmoid(tau * (log_ratios.exp() - 1)) * 4 / tau


def squared_error(values: Tensor, returns: Tensor) -> Tensor:
    """½ (V − R)²."""
    errors = values - returns
    return 0.5 * errors * errors


def clipped_squared_error(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float
) -> Tensor:
    """½ max((V − R)², (V_old + clip(V − V_old, ±clip) − R)²), as in OpenAI baselines' ppo2.

    The maximum only removes gradient from steps that moved towards R past the clip; a step that
    moved away from R keeps its full gradient.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
