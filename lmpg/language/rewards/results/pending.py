"""Scores that are being waited for, and their weighted sum once they are there."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmpg.language.rewards.request import RewardReply, RewardRequest
from lmpg.language.rewards.results.scores import Scores

if TYPE_CHECKING:
    from lmpg.language.rewards.scorer import Scorer

LARGEST = 1e18  # of a score's magnitude
NONE = "it returned None"
TokenRewards = defaultdict[int, float]  # token index → weighted reward


@dataclass(frozen=True)
class PendingScores:
    """Scores of a request that is being scored; `replies` are its rewards' pending replies."""

    scorer: Scorer
    request: RewardRequest
    replies: dict[str, Callable[[], RewardReply]]

    def result(self) -> Scores:
        """Waits for the replies of all rewards, and returns their weighted sum."""
        count, weights = len(self.request.completions), self.scorer.weights
        said: dict[str, list[float | None]] = {}
        messages = []
        extras: dict[str, list[Any]] = {}
        logged: defaultdict[str, list[float]] = defaultdict(list)
        steps: list[TokenRewards] = [defaultdict(float) for _ in range(count)]
        for weight, (name, pending) in zip(weights, self.replies.items()):
            reply = pending()
            said[name] = _summed(reply, self.request, weight, steps)
            extras |= reply.extras
            for metric, values in reply.metrics.items():
                logged[metric] += values
            if reply.notes or reply.messages:
                self.scorer.warn_once(name, [*reply.notes, *reply.messages])
            for text, times in Counter(reply.messages).items():
                messages.append(f"{name}: {times} of {count} without a score: {text}")
        rows: list[tuple[float | None, ...]] = [*zip(*said.values())] if said else [()] * count
        totals = [_total(weights, scores) for scores in rows]
        messages += self._of_nothing_said(said, rows)
        too_large = [i for i, x in enumerate(totals) if x is not None and not _fits(x, steps[i])]
        for i in too_large:
            totals[i] = None
        if too_large:
            what = f"it is beyond ±{LARGEST:g}, expected less"
            messages.append(f"{len(too_large)} of {count} without a score: {what}")
        placed = [sorted(x.items()) if t is not None else [] for x, t in zip(steps, totals)]
        by_reward = {name: [None if _declined(x) else x for x in xs] for name, xs in said.items()}
        return Scores(totals, by_reward, totals.count(None), messages, placed, extras, dict(logged))

    def _of_nothing_said(
        self, said: dict[str, list[float | None]], rows: list[tuple[float | None, ...]]
    ) -> list[str]:
        """Messages about responses that no reward wants to score."""
        silent = sum(bool(scores) and all(map(_declined, scores)) for scores in rows)
        if not silent:
            return []
        for name in said:
            self.scorer.warn_once(name, [NONE])
        return [f"{name}: {silent} of {len(rows)} without a score: {NONE}" for name in said]


def _declined(score: float | None) -> bool:
    """Whether a reward declines to score a response: it is for others."""
    return score is not None and math.isnan(score)


def _total(weights: Sequence[float], scores: tuple[float | None, ...]) -> float | None:
    """The weighted sum of the rewards that score a response; None where one of them failed, or
    where all decline."""
    if None in scores or (scores and all(map(_declined, scores))):
        return None
    return sum((w * x for w, x in zip(weights, scores) if not math.isnan(x)), 0.0)  # type: ignore


def _fits(total: float, token_rewards: TokenRewards) -> bool:
    """Whether float32 could hold the square of every number of a response.

    A score that is finite in float64 would else be inf in the loss, or in its spread.
    """
    return all(abs(x) < LARGEST for x in (total, *token_rewards.values()))


def _summed(
    reply: RewardReply, request: RewardRequest, weight: float, steps: list[TokenRewards]
) -> list[float | None]:
    """One score per response; the numbers of lists are added to `steps`, weighted."""
    for i, score in enumerate(reply.scores):
        if not isinstance(score, list):
            continue
        tokens = None if request.token_indices is None else request.token_indices[i]
        if tokens is None or len(tokens) != len(score):
            reply.scores[i] = None
            reply.messages.append(_wrong_count(len(score), tokens, request))
            continue
        for token, number in zip(tokens, score):
            steps[i][token] += weight * number
        reply.scores[i] = sum(score)
    return reply.scores


def _wrong_count(count: int, tokens: list[int] | None, request: RewardRequest) -> str:
    if tokens is None:
        return (
            f"it returned a list of {count} numbers for a completion, expected one number; "
            "for one per token or step set --rewards.process token or step"
        )
    what = "tokens" if request.completion_steps is None else "steps"
    return f"it returned {count} numbers for the {len(tokens)} {what} of a completion"
