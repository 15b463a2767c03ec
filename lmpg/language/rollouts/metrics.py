"""Metrics of a rollout of completions; names as in TRL."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmpg.functional.masking import masked_mean
from lmpg.language.rewards.scorer import Scores
from lmpg.types import Rollout


def mean(values: list[float]) -> float:
    """Mean of a list; NaN of an empty one."""
    return sum(values) / len(values) if values else math.nan


def score_statistics(totals: list[float | None]) -> dict[str, float]:
    """`reward` and `reward_std` (unbiased) over the completions that have a score."""
    known = torch.tensor([x for x in totals if x is not None], dtype=torch.float64)
    return {
        "reward": float(known.mean()) if len(known) else math.nan,
        "reward_std": float(known.std()) if len(known) > 1 else 0.0,
    }


def reward_metrics(scores: list[Scores], greedy_errors: int) -> dict[str, float]:
    """Mean and std of the total and of each reward over all that was sampled, and how many
    completions have no score."""
    metrics = score_statistics([total for x in scores for total in x.totals])
    metrics["reward_errors"] = float(sum(x.errors for x in scores) + greedy_errors)
    for name in scores[0].by_reward:
        statistics = score_statistics([value for x in scores for value in x.by_reward[name]])
        metrics[f"rewards/{name}/mean"] = statistics["reward"]
        metrics[f"rewards/{name}/std"] = statistics["reward_std"]
    return metrics


def rollout_metrics(
    rollout: Rollout, raw: list[float | None], finished: list[bool], *, processed: bool
) -> dict[str, float]:
    """Score, KL and entropy per completion (nats), and lengths (tokens).

    raw: scores before processing. processed: whether those in the rollout can differ from them.
    """
    lengths_B = rollout.mask_BT.sum(1)
    raw_B = torch.tensor([0.0 if x is None else x for x in raw])
    metrics = {
        "objective/scores": float(masked_mean(raw_B, rollout.scorable_B)),
        "objective/entropy": _mean_sum(-rollout.logprobs_BT, rollout.mask_BT),
        "completions/mean_length": float(lengths_B.double().mean()),
        "completions/min_length": float(lengths_B.min()),
        "completions/max_length": float(lengths_B.max()),
        "completions/clipped_ratio": 1 - sum(finished) / len(finished),
    }
    if processed:
        shaped = masked_mean(rollout.scores_B, rollout.scorable_B)
        metrics["objective/shaped_scores"] = float(shaped)
    if rollout.greedy_scores_B is not None:
        greedy = masked_mean(rollout.greedy_scores_B, rollout.scorable_B)
        metrics["objective/greedy_scores"] = float(greedy)
    if rollout.ref_logprobs_BT is not None:
        log_ratio_BT = rollout.logprobs_BT - rollout.ref_logprobs_BT
        metrics["objective/kl"] = _mean_sum(log_ratio_BT, rollout.mask_BT)
    return metrics


def _mean_sum(x_BT: Tensor, mask_BT: Tensor) -> float:
    """Mean over all completions of the sum over their steps in the mask."""
    return float(torch.where(mask_BT, x_BT, 0).sum(1).double().mean())
