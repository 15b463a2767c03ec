"""From what rewards say of responses to the scores that are learned from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lmpg.functional.score_functions import RunningMoments, overlong_punishment
from lmpg.language.rewards.scorer import Scores, Step
from lmpg.language.rewards.settings import RewardSettings
from lmpg.language.rollouts.generation import Responses

STD_EPS = 1e-8  # beside it the std of scores that are all the same is no divisor
NO_SPREAD = 1e-6  # a std that says nothing: running scores are then centred, not scaled


@dataclass(frozen=True)
class Shaped:
    """Shaped scores, None where a response stays out, and the part of each that lies on tokens."""

    totals: list[float | None]
    steps: list[list[Step]]


@dataclass(frozen=True)
class Shaping:
    """`rewards.truncated`, then `normalise`, `score_clip`, `missing_eos_penalty` and
    `overlong_tokens`, in this order.

    seen: statistics of all scores so far, those of this step's too.
    """

    settings: RewardSettings
    max_new_tokens: int
    seen: RunningMoments = field(default_factory=RunningMoments)

    @property
    def changes_scores(self) -> bool:
        """Whether shaped scores can differ from raw ones."""
        s = self.settings
        penalised = s.missing_eos_penalty or s.overlong_tokens or s.truncated in ("zero", "mask")
        return bool(penalised or s.normalise == "running" or s.score_clip is not None)

    def counted(self, responses: Responses, scores: Scores) -> list[float | None]:
        """Raw scores as they enter the statistics: without, or with 0 for, truncated responses."""
        put = {"zero": lambda _: 0.0, "mask": lambda _: None}.get(self.settings.truncated)
        if put is None:
            return scores.totals
        rows = zip(scores.totals, responses.finished)
        return [x if x is None or finished else put(x) for x, finished in rows]

    def after(self, counted: list[float | None]) -> Shaping:
        """Having seen these scores, of all ranks."""
        if self.settings.normalise == "none":
            return self
        return replace(self, seen=self.seen.after([x for x in counted if x is not None]))

    def shaped(self, responses: Responses, scores: Scores) -> Shaped:
        """Scores of `responses` for learning; what is known of single tokens is scaled alike."""
        counted = self.counted(responses, scores)
        scale = self._scale()
        rows = zip(counted, responses.ids, responses.finished)
        totals = [None if x is None else self._shaped(x, len(r), done) for x, r, done in rows]
        kept = [
            x is not None and (done or self.settings.truncated != "zero")
            for x, done in zip(counted, responses.finished)
        ]
        return Shaped(
            totals,
            [[(t, x * scale) for t, x in row] if k else [] for row, k in zip(scores.steps, kept)],
        )

    def _scale(self) -> float:
        known = self.settings.normalise != "none" and self.seen.std > NO_SPREAD
        return 1 / (self.seen.std + STD_EPS) if known else 1.0

    def _shaped(self, score: float, length: int, finished: bool) -> float:
        settings = self.settings
        if settings.normalise == "running":
            score = (score - self.seen.mean) * self._scale()
        if settings.score_clip is not None:
            score = max(-settings.score_clip, min(settings.score_clip, score))
        if not finished:
            score -= settings.missing_eos_penalty
        return score + overlong_punishment(length, self.max_new_tokens, settings.overlong_tokens)

    def state(self) -> dict[str, Any]:
        """The running statistics; nothing where there are none."""
        return {} if self.settings.normalise == "none" else {"scores": vars(self.seen)}

    def with_state(self, state: dict[str, Any]) -> Shaping:
        """Going on exactly where `state` was taken."""
        return replace(self, seen=RunningMoments(**state["scores"])) if state else self
