"""Metrics of a rollout of responses; names as in design section 9 and in TRL."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lmpg.data.prompts import Prompt
from lmpg.functional.advantages import group_centred
from lmpg.functional.masking import masked_mean
from lmpg.rewards.scorer import Scores
from lmpg.types import Rollout

SHOWN = 4


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


def reward_metrics(scores: Scores) -> dict[str, float]:
    """Per reward its mean and std, and how many responses have none."""
    found = score_statistics(scores.totals) | {"reward_errors": float(scores.errors)}
    for name, values in scores.by_reward.items():
        statistics = score_statistics(values)
        found[f"rewards/{name}/mean"] = statistics["reward"]
        found[f"rewards/{name}/std"] = statistics["reward_std"]
    return found


def rollout_metrics(rollout: Rollout, group_size: int, finished: list[bool]) -> dict[str, float]:
    """Score, KL and entropy per response (nats), lengths (tokens), groups without spread."""
    lengths_B = rollout.mask_BT.sum(1)
    found = {
        "objective/scores": float(masked_mean(rollout.scores_B, rollout.scorable_B)),
        "objective/entropy": _per_response(-rollout.logprobs_BT, rollout),
        "completions/mean_length": float(lengths_B.double().mean()),
        "completions/min_length": float(lengths_B.min()),
        "completions/max_length": float(lengths_B.max()),
        "completions/clipped_ratio": 1 - sum(finished) / len(finished),
    }
    if rollout.ref_logprobs_BT is not None:
        log_ratio_BT = rollout.logprobs_BT - rollout.ref_logprobs_BT
        found["objective/kl"] = _per_response(log_ratio_BT, rollout)
    if group_size > 1:
        shape = (-1, group_size)
        centred_PG = group_centred(rollout.scores_B.view(shape), rollout.scorable_B.view(shape))
        found["frac_reward_zero_std"] = float((centred_PG == 0).all(1).double().mean())
    return found


def shown_samples(
    prompts: list[Prompt], completions: list[str], totals: list[float | None]
) -> list[dict[str, Any]]:
    """A few responses for samples.jsonl."""
    rows = zip(prompts, completions, totals)
    return [
        {"prompt": prompt.prompt, "completion": completion, "score": score}
        for prompt, completion, score in list(rows)[:SHOWN]
    ]


def _per_response(x_BT: Tensor, rollout: Rollout) -> float:
    """Mean over all responses of the sum over their chosen steps."""
    return float(torch.where(rollout.mask_BT, x_BT, 0).sum(1).double().mean())
