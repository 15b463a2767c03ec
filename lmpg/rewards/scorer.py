"""All rewards of a run together: the weighted sum per response, with failures counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmpg.rewards.functions import FunctionReward
from lmpg.rewards.settings import RewardSettings
from lmpg.sections import UserError

logger = logging.getLogger(__name__)
MAX_WARNINGS = 20


@dataclass(frozen=True)
class Scores:
    """Scores of a batch of responses.

    totals: weighted sum over the rewards; None where any of them has no score.
    errors: number of such responses. messages: what went wrong, each kind once, with its count.
    """

    totals: list[float | None]
    by_reward: dict[str, list[float | None]]
    errors: int
    messages: list[str]


class Scorer:
    """The rewards of `settings`; imports every function and loads every model at once.

    columns: names of the data's columns where they are known, so that a function that needs
    another one is refused now.
    """

    def __init__(
        self,
        settings: RewardSettings,
        *,
        columns: Iterable[str] | None = None,
        device: str = "cpu",
        trust_remote_code: bool = False,
    ):
        if not settings.functions and not settings.models:
            raise UserError(
                "no reward is given: use --rewards.functions FILE.py:NAME, "
                "--rewards.models PATH, or both."
            )
        self._rewards: dict[str, Any] = {}
        self._said: set[tuple[str, str]] = set()
        try:
            self._add_functions(settings, columns)
            if settings.models:
                from lmpg.rewards.models import ModelReward  # transformers takes seconds
            for path in settings.models:
                reward = ModelReward.load(path, trust_remote_code=trust_remote_code, device=device)
                self._add(reward, Path(path).parent.name)
        except BaseException:
            self.close()
            raise
        self.weights = settings.weights or (1.0,) * len(self._rewards)

    @property
    def names(self) -> list[str]:
        """Names of the rewards, in the order of the weights."""
        return list(self._rewards)

    def score(
        self,
        prompts: list,
        completions: list[str],
        completion_ids: list[list[int]],
        columns: dict[str, list],
    ) -> Scores:
        """Scores of B responses; every argument has (or holds lists with) one entry per response.

        prompts: as the user wrote them. Where one is chat messages, functions get its completion
        as messages too: [{"role": "assistant", "content": ...}].
        """
        by_reward, messages = {}, []
        for name, reward in self._rewards.items():
            answers = completions
            if isinstance(reward, FunctionReward):
                answers = [_as_written(p, c) for p, c in zip(prompts, completions)]
            by_reward[name] = reward.score(prompts, answers, completion_ids, columns)
            self._warn_once(name, [*reward.notes, *reward.messages])
            for text, count in Counter(reward.messages).items():
                messages.append(f"{name}: {count} of {len(completions)} without a score: {text}")
        totals = [self._total(scores) for scores in zip(*by_reward.values())]
        return Scores(totals, by_reward, totals.count(None), messages)

    def close(self) -> None:
        """Ends the workers; also done when the program ends."""
        for reward in self._rewards.values():
            reward.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _warn_once(self, name: str, texts: list[str]) -> None:
        for text in dict.fromkeys(texts):
            if (name, text) not in self._said and len(self._said) < MAX_WARNINGS:
                self._said.add((name, text))
                logger.warning("reward %s: %s (said once)", name, text)

    def _total(self, scores: tuple[float | None, ...]) -> float | None:
        if any(score is None for score in scores):
            return None
        return sum(weight * score for weight, score in zip(self.weights, scores))  # type: ignore

    def _add_functions(self, settings: RewardSettings, columns: Iterable[str] | None) -> None:
        known = None if columns is None else list(columns)
        for spec in settings.functions:
            reward = FunctionReward(spec, settings.timeout)
            self._add(reward, Path(spec.rpartition(":")[0]).stem)
            if known is not None:
                reward.check_columns(known)

    def _add(self, reward: Any, qualifier: str) -> None:
        """Under its name, or with where it comes from where another has that name."""
        name = reward.name
        if name in self._rewards:
            name = f"{qualifier}.{name}"
        number = 2
        while name in self._rewards:
            name, number = f"{reward.name}_{number}", number + 1
        self._rewards[name] = reward


def _as_written(prompt: Any, completion: str) -> Any:
    if isinstance(prompt, str):
        return completion
    return [{"role": "assistant", "content": completion}]
