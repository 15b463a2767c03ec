"""All rewards of a run together: the weighted sum per response, with failures counted."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmpg.language.rewards.functions import FunctionReward
from lmpg.language.rewards.process_rewards import Decode, pieces, step_places
from lmpg.language.rewards.request import Answer, Batch, Pending, Reward
from lmpg.language.rewards.settings import RewardSettings
from lmpg.settings.section import UserError

logger = logging.getLogger(__name__)
MAX_WARNINGS = 5  # of each reward
LARGEST = 1e18  # of a score's magnitude
Step = tuple[int, float]
Placed = defaultdict[int, float]  # token index → weighted reward


@dataclass(frozen=True)
class Scores:
    """Scores of a batch of responses.

    totals: weighted sum over the rewards; None where any of them has no score.
    errors: number of such responses. messages: what went wrong, each kind once, with its count.
    steps: per response the (token index, weighted reward) pairs of process rewards, which are
        part of its total; in the order of the tokens, each once.
    """

    totals: list[float | None]
    by_reward: dict[str, list[float | None]]
    errors: int
    messages: list[str]
    steps: list[list[Step]]

    def rows(self, index: list[int]) -> Scores:
        """The scores with only the responses in `index`, in that order."""
        totals = [self.totals[i] for i in index]
        by_reward = {name: [x[i] for i in index] for name, x in self.by_reward.items()}
        steps = [self.steps[i] for i in index]
        return Scores(totals, by_reward, totals.count(None), self.messages, steps)

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of all parts, in their order."""
        names = parts[0].by_reward
        return cls(
            totals=[x for part in parts for x in part.totals],
            by_reward={name: [x for part in parts for x in part.by_reward[name]] for name in names},
            errors=sum(part.errors for part in parts),
            messages=[x for part in parts for x in part.messages],
            steps=[x for part in parts for x in part.steps],
        )


class Scorer:
    """The rewards of `settings`; imports every function and loads every model at once.

    columns: names of the data's columns where they are known, so that a function that needs
    another one is refused now. decode: (ids before, ids) → text of the ids; needed to find the
    tokens of steps.
    """

    def __init__(
        self,
        settings: RewardSettings,
        *,
        columns: Iterable[str] | None = None,
        device: str = "cpu",
        trust_remote_code: bool = False,
        decode: Decode | None = None,
    ):
        if not settings.functions and not settings.models:
            raise UserError(
                "no reward is given: use --rewards.functions FILE.py:NAME, "
                "--rewards.models PATH, or both."
            )
        self._settings = settings
        self._decode = decode
        self._rewards: dict[str, Reward] = {}
        self._said: defaultdict[str, set[str]] = defaultdict(set)
        try:
            self._add_functions(settings, columns)
            if settings.models:
                from lmpg.language.rewards.reward_model import ModelReward
            for path in settings.models:
                model = ModelReward.load(path, trust_remote_code=trust_remote_code, device=device)
                self._add(model, Path(path).parent.name)
        except BaseException:
            self.close()
            raise
        self.weights = settings.weights or (1.0,) * len(self._rewards)

    @property
    def names(self) -> list[str]:
        """Names of the rewards, in the order of the weights."""
        return list(self._rewards)

    def submit(
        self,
        prompts: list,
        completions: list[str],
        completion_ids: list[list[int]],
        columns: dict[str, list],
    ) -> PendingScores:
        """Begins to score B responses; functions work in the background, models when asked.

        Every argument has (or holds lists with) one entry per response. prompts: as the user
        wrote them.
        """
        batch = self._with_places(Batch(prompts, completions, completion_ids, columns))
        asked = {name: reward.submit(batch) for name, reward in self._rewards.items()}
        return PendingScores(self, batch, asked)

    def score(
        self,
        prompts: list,
        completions: list[str],
        completion_ids: list[list[int]],
        columns: dict[str, list],
    ) -> Scores:
        """`submit`, and the scores as soon as they are there."""
        return self.submit(prompts, completions, completion_ids, columns).result()

    def close(self) -> None:
        """Ends the workers; also done when the program ends."""
        for reward in self._rewards.values():
            reward.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warn_once(self, name: str, texts: list[str]) -> None:
        """Logs what is new of what the reward `name` has to say."""
        said = self._said[name]
        for text in dict.fromkeys(texts):
            if text not in said and len(said) < MAX_WARNINGS:
                said.add(text)
                last = "; no more is said of this reward" if len(said) == MAX_WARNINGS else ""
                logger.warning("reward %s: %s (said once%s)", name, text, last)

    def _with_places(self, batch: Batch) -> Batch:
        ids = batch.completion_ids
        if self._settings.process == "none":
            return batch
        if self._settings.process == "token":
            return replace(batch, places=[list(range(len(row))) for row in ids])
        if self._decode is None:
            raise ValueError("rewards.process = 'step' needs `decode`, to find the steps' tokens")
        separator, texts = self._settings.step_separator, batch.completions
        return replace(
            batch,
            completion_steps=[pieces(text, separator) for text in texts],
            places=[step_places(t, row, separator, self._decode) for t, row in zip(texts, ids)],
        )

    def _add_functions(self, settings: RewardSettings, columns: Iterable[str] | None) -> None:
        known = None if columns is None else list(columns)
        if known is not None and settings.process == "step":
            known.append("completion_steps")
        for spec in settings.functions:
            reward = FunctionReward(spec, settings.timeout, settings.workers)
            self._add(reward, reward.qualifier)
            if known is not None:
                reward.check_columns(known)

    def _add(self, reward: Reward, qualifier: str) -> None:
        """Under its name, or with where it comes from where another has that name."""
        name = reward.name
        if name in self._rewards and qualifier != name:
            name = f"{qualifier}.{name}"
        number = 2
        while name in self._rewards:
            name, number = f"{reward.name}_{number}", number + 1
        self._rewards[name] = reward


class PendingScores:
    """A batch that is being scored."""

    def __init__(self, scorer: Scorer, batch: Batch, asked: dict[str, Pending]):
        self._scorer, self._batch, self._asked = scorer, batch, asked

    def result(self) -> Scores:
        """The scores, as soon as they are there."""
        by_reward, messages = {}, []
        steps: list[Placed] = [defaultdict(float) for _ in range(len(self._batch))]
        for weight, (name, pending) in zip(self._scorer.weights, self._asked.items()):
            answer = pending.result()
            by_reward[name] = _summed(answer, self._batch, weight, steps)
            self._scorer.warn_once(name, [*answer.notes, *answer.messages])
            for text, count in Counter(answer.messages).items():
                said = f"{count} of {len(self._batch)} without a score: {text}"
                messages.append(f"{name}: {said}")
        totals = [self._total(scores) for scores in zip(*by_reward.values())]
        totals, too_large = _bounded(totals, steps)
        messages += too_large
        placed = [sorted(x.items()) if t is not None else [] for x, t in zip(steps, totals)]
        return Scores(totals, by_reward, totals.count(None), messages, placed)

    def _total(self, scores: tuple[float | None, ...]) -> float | None:
        if any(score is None for score in scores):
            return None
        return sum(weight * score for weight, score in zip(self._scorer.weights, scores))  # type: ignore


def _bounded(
    totals: list[float | None], steps: list[Placed]
) -> tuple[list[float | None], list[str]]:
    """Without totals that float32 could not hold the square of, and what there is to say of them.

    A score that is finite in float64 would else be inf in the loss, or in its spread.
    """

    def fits(total: float | None, placed: Placed) -> bool:
        return total is None or all(abs(x) < LARGEST for x in (total, *placed.values()))

    kept = [t if fits(t, placed) else None for t, placed in zip(totals, steps)]
    lost = kept.count(None) - totals.count(None)
    said = f"{lost} of {len(kept)} without a score: it is beyond ±{LARGEST:g}, expected less"
    return kept, [said] if lost else []


def _summed(answer: Answer, batch: Batch, weight: float, steps: list[Placed]) -> list[float | None]:
    """One score per response; the numbers of lists are added to `steps`, weighted."""
    for i, value in enumerate(answer.values):
        if not isinstance(value, list):
            continue
        places = None if batch.places is None else batch.places[i]
        if places is None or len(places) != len(value):
            answer.values[i] = None
            answer.messages.append(_misplaced(len(value), places, batch))
            continue
        for place, number in zip(places, value):
            steps[i][place] += weight * number
        answer.values[i] = sum(value)
    return answer.values


def _misplaced(count: int, places: list[int] | None, batch: Batch) -> str:
    if places is None:
        return (
            f"it returned a list of {count} numbers for a completion, expected one number; "
            "for one per token or step set --rewards.process token or step"
        )
    what = "tokens" if batch.completion_steps is None else "steps"
    return f"it returned {count} numbers for the {len(places)} {what} of a completion"
