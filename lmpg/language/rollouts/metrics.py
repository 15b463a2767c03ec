"""Metrics of a rollout of responses; names as in design section 9 and in TRL."""

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
    """`reward` and `reward_std` (unbiased) over the responses that have a score."""
    known = torch.tensor([x for x in totals if x is not None], dtype=torch.float64)
    return {
        "reward": float(known.mean()) if len(known) else math.nan,
        "reward_std": float(known.std()) if len(known) > 1 else 0.0,
    }


def reward_metrics(scores: list[Scores], greedy_errors: int) -> dict[str, float]:
    """Of everything that was sampled: per reward its mean and std, and how many responses have
    none."""
    errors = sum(x.errors for x in scores) + greedy_errors
    totals = [total for x in scores for total in x.totals]
    found = score_statistics(totals) | {"reward_errors": float(errors)}
    for name in scores[0].by_reward:
        statistics = score_statistics([value for x in scores for value in x.by_reward[name]])
        found[f"rewards/{name}/mean"] = statistics["reward"]
        found[f"rewards/{name}/std"] = statistics["reward_std"]
    return found


def rollout_metrics(
    rollout: Rollout, raw: list[float | None], finished: list[bool], *, shaped: bool
) -> dict[str, float]:
    """Score, KL and entropy per response (nats), and lengths (tokens); `raw` scores are those
    before shaping."""
    lengths_B = rollout.mask_BT.sum(1)
    raw_B = torch.tensor([0.0 if x is None else x for x in raw])
    found = {
        "objective/scores": float(masked_mean(raw_B, rollout.scorable_B)),
        "objective/entropy": _per_response(-rollout.logprobs_BT, rollout),
        "completions/mean_length": float(lengths_B.double().mean()),
        "completions/min_length": float(lengths_B.min()),
        "completions/max_length": float(lengths_B.max()),
        "completions/clipped_ratio": 1 - sum(finished) / len(finished),
    }
    if shaped:
        found["objective/shaped_scores"] = float(masked_mean(rollout.scores_B, rollout.scorable_B))
    if rollout.greedy_scores_B is not None:
        found["objective/greedy_scores"] = float(
            masked_mean(rollout.greedy_scores_B, rollout.scorable_B)
        )
    if rollout.ref_logprobs_BT is not None:
        log_ratio_BT = rollout.logprobs_BT - rollout.ref_logprobs_BT
        found["objective/kl"] = _per_response(log_ratio_BT, rollout)
    return found


def _per_response(x_BT: Tensor, rollout: Rollout) -> float:
    """Mean over all responses of the sum over their chosen steps."""
    return float(torch.where(rollout.mask_BT, x_BT, 0).sum(1).double().mean())
