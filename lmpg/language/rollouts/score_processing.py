"""Score processing: turns the raw scores of completions into the scores that the algorithm learns
from; and the metrics of raw scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lmpg.functional.advantages import decoupled
from lmpg.functional.score_statistics import RunningMoments, overlong_punishment
from lmpg.language.rewards.results.scores import Scores
from lmpg.language.rewards.settings import RewardSettings
from lmpg.language.rollouts.completed import Completions

STD_EPS = 1e-8  # keeps the divisor above 0 where all scores are the same
NO_SPREAD = 1e-6  # below this std, running scores are centred but not scaled


@dataclass(frozen=True)
class ScoreProcessing:
    """Applies `rewards.truncated`, `combine`, `normalise`, `score_clip`, `missing_eos_penalty` and
    `overlong_tokens`, in this order.

    seen: running statistics of all scores so far, this iteration's included.
    """

    settings: RewardSettings
    max_new_tokens: int
    seen: RunningMoments = field(default_factory=RunningMoments)

    @property
    def changes_scores(self) -> bool:
        """Whether processed scores can differ from raw ones."""
        s = self.settings
        penalised = s.missing_eos_penalty or s.overlong_tokens or s.truncated in ("zero", "mask")
        rescaled = s.normalise == "running" or s.combine == "standardised"
        return bool(penalised or rescaled or s.score_clip is not None)

    def counted(self, completions: Completions, scores: Scores) -> list[float | None]:
        """Raw scores for the running statistics. A truncated completion has none there
        (`rewards.truncated` = mask), or a score of 0 (zero)."""
        return self._counted(completions, scores.totals)

    def _counted(self, completions: Completions, scores: list[float | None]) -> list[float | None]:
        if self.settings.truncated not in ("zero", "mask"):
            return scores
        instead = 0.0 if self.settings.truncated == "zero" else None
        rows = zip(scores, completions.finished)
        return [x if x is None or finished else instead for x, finished in rows]

    def _combined(
        self, completions: Completions, scores: Scores, group_size: int
    ) -> list[float | None]:
        """What a completion's rewards come to: their sum, or what each says within its group."""
        totals = self._counted(completions, scores.totals)
        if self.settings.combine == "sum":
            return totals
        each = [self._counted(completions, x) for x in scores.by_reward.values()]
        weights = [*self.settings.weights, *[1.0] * len(each)][: len(each)]  # an environment's: 1
        weights_K = torch.tensor(weights, dtype=torch.float64)
        scores_KPG = torch.stack([score_tensors(x)[0] for x in each]).view(
            len(each), -1, group_size
        )
        valid_PG = score_tensors(totals)[1].view(-1, group_size)
        scored_KPG = torch.stack([score_tensors(x)[1] for x in each]).view(scores_KPG.shape)
        valid_KPG = scored_KPG & valid_PG  # a reward that declines stays out of its own mean
        found = decoupled(scores_KPG, weights_K, valid_KPG, STD_EPS).flatten().tolist()
        return [None if total is None else x for total, x in zip(totals, found)]

    def after(self, counted: list[float | None]) -> ScoreProcessing:
        """The same processing, with these scores of all ranks added to its statistics."""
        if self.settings.normalise == "none":
            return self
        return replace(self, seen=self.seen.after([x for x in counted if x is not None]))

    def processed(self, completions: Completions, scores: Scores, group_size: int = 1) -> Scores:
        """The scores of groups to learn from; process rewards are scaled as the totals are."""
        known = self.settings.normalise != "none" and self.seen.std > NO_SPREAD
        scale = 1 / (self.seen.std + STD_EPS) if known else 1.0
        totals: list[float | None] = []
        steps = []
        combined = self._combined(completions, scores, group_size)
        rows = zip(combined, scores.steps, completions.ids, completions.finished)
        for score, rewards, ids, finished in rows:
            kept = score is not None and (finished or self.settings.truncated != "zero")
            totals.append(None if score is None else self._total(score, scale, len(ids), finished))
            steps.append([(t, x * scale) for t, x in rewards] if kept else [])
        return replace(scores, totals=totals, steps=steps)

    def _total(self, score: float, scale: float, length: int, finished: bool) -> float:
        """One completion's processed score."""
        settings = self.settings
        if settings.normalise == "running":
            score = (score - self.seen.mean) * scale
        if settings.score_clip is not None:
            score = max(-settings.score_clip, min(settings.score_clip, score))
        if not finished:
            score -= settings.missing_eos_penalty
        if settings.overlong_tokens:
            score += overlong_punishment(length, self.max_new_tokens, settings.overlong_tokens)
        return score

    def state(self) -> dict[str, Any]:
        """The running statistics, for a checkpoint; {} where there are none."""
        return {} if self.settings.normalise == "none" else {"scores": vars(self.seen)}

    def with_state(self, state: dict[str, Any]) -> ScoreProcessing:
        """The same processing with the statistics of a checkpoint."""
        return replace(self, seen=RunningMoments(**state["scores"])) if "scores" in state else self


def mean(values: Sequence[float]) -> float:
    """Mean of a list; NaN of an empty one."""
    return sum(values) / len(values) if values else math.nan


def score_tensors(scores: list[float | None]) -> tuple[Tensor, Tensor]:
    """Scores [B], float64, 0 where there is none; and which completions have one [B]."""
    given_B = torch.tensor([math.nan if x is None else x for x in scores], dtype=torch.float64)
    known_B = ~given_B.isnan()
    return torch.where(known_B, given_B, 0), known_B


def score_statistics(scores: list[float | None]) -> dict[str, float]:
    """`reward` and `reward_std` (unbiased) over the completions that have a score."""
    scores_B, known_B = score_tensors(scores)
    known = scores_B[known_B]
    return {
        "reward": float(known.mean()) if len(known) else math.nan,
        "reward_std": float(known.std()) if len(known) > 1 else 0.0,
    }


def reward_metrics(scores: Scores, greedy_errors: int) -> dict[str, float]:
    """Mean and std of the total and of each reward over all that was sampled, and how many
    completions have no score."""
    metrics = score_statistics(scores.totals)
    metrics["reward_errors"] = float(scores.errors + greedy_errors)
    for name, values in scores.by_reward.items():
        statistics = score_statistics(values)
        metrics[f"rewards/{name}/mean"] = statistics["reward"]
        metrics[f"rewards/{name}/std"] = statistics["reward_std"]
    return metrics | {f"logged/{name}": mean(values) for name, values in scores.logged.items()}
