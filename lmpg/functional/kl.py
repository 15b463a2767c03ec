"""Estimators of KL(π ‖ π_ref) from samples of π (joschu.net, "Approximating KL divergence").

They take x = log π − log π_ref at the sampled steps. In the reward use k1. In the loss, `k1` has
zero expected gradient and `k3` the gradient of the forward KL: see `kl_loss`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lmpg.functional.losses import MAX_LOG_RATIO, log_ratio

Estimator = Literal["k1", "k2", "k3", "plain_k3"]


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """x: unbiased, can be negative, in nats."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """x²/2: biased, never negative, in nats."""
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """e^(−x) − 1 + x: unbiased, never negative, in nats; x is clamped to ±20."""
    x = (logprobs - ref_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (-x).exp() - 1 + x


def penalised_rewards(
    rewards: Tensor, logprobs: Tensor, ref_logprobs: Tensor | None, mask: Tensor, coef: float
) -> Tensor:
    """r − β k1 on the steps that `mask` marks (arXiv 2203.02155, eq. 2); r where β is 0."""
    if coef == 0:
        return rewards
    if ref_logprobs is None:
        raise ValueError(f"kl_coef = {coef} needs the log-probs of a reference, got none")
    return rewards - coef * torch.where(mask, k1(logprobs, ref_logprobs), 0.0)


def kl_loss(
    logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, estimator: Estimator
) -> Tensor:
    """A per-step term whose expected gradient is that of KL(π ‖ π_ref), on steps from π_old.

    k2 is weighted by the detached ratio ρ = π/π_old; k3 by ρ with its gradient kept. plain_k3 is
    k3 without ρ (arXiv 2402.03300, eq. 4): its gradient, on steps from π, is that of KL(π_ref ‖ π).
    """
    if estimator == "k1":
        raise ValueError("k1 in the loss has zero expected gradient; expected k2, k3 or plain_k3")
    if estimator == "plain_k3":
        return k3(logprobs, ref_logprobs)
    ratios = log_ratio(logprobs, old_logprobs).exp()
    if estimator == "k2":
        return ratios.detach() * k2(logprobs, ref_logprobs)
    return ratios * k3(logprobs, ref_logprobs)


def doubled_or_halved(coef: float, kl: float, target: float) -> float:
    """PPO's adaptive penalty (arXiv 1707.06347, section 4): doubled when kl > 1.5 target, halved
    when kl < target / 1.5."""
    if kl > 1.5 * target:
        return coef * 2
    return coef / 2 if kl < target / 1.5 else coef


def proportionally_adapted(
    coef: float, kl: float, target: float, num_responses: float, horizon: float
) -> float:
    """β(1 + clip(KL/target − 1, ±0.2)·n/horizon) (arXiv 1909.08593, section 2.2)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * num_responses / horizon)
