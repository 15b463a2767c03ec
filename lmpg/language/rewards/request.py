"""What a reward is asked for, and what it replies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from lmpg.language.data.chat import Messages

GIVEN = ("prompts", "completions", "completion_ids")
TOLD = ("trainer_state", "log_extra", "log_metric")
"""What TRL gives reward functions beside columns; given where a function names it."""


@dataclass(frozen=True)
class RewardRequest:
    """B responses to be scored; every list has (or holds lists with) one entry per response.

    prompts: as the user wrote them. completions: as text, or of several turns as messages.
    completion_steps: the pieces of each completion, where rewards may score each of them.
    token_indices: of each completion, the tokens that a process reward gives one number each; None
        if a reward may give one number per completion only.
    state: what TRL calls the trainer's state.
    """

    prompts: list
    completions: list[str | Messages]
    completion_ids: list[list[int]]
    columns: dict[str, list]
    completion_steps: list[list[str]] | None = None
    token_indices: list[list[int]] | None = None
    state: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, list]:
        """Everything that a function may ask for; where a prompt is chat messages, functions get
        its completion as messages too: [{"role": "assistant", "content": ...}], of several turns
        with what others wrote between them.
        """
        written = [
            completion
            if isinstance(prompt, str) or not isinstance(completion, str)
            else [{"role": "assistant", "content": completion}]
            for prompt, completion in zip(self.prompts, self.completions)
        ]
        given: dict[str, list[Any]] = {
            **self.columns,
            **dict(zip(GIVEN, (self.prompts, written, self.completion_ids))),
        }
        if self.completion_steps is not None:
            given["completion_steps"] = self.completion_steps
        return given


@dataclass
class RewardReply:
    """The scores that a reward gives to a request, one per response.

    scores: a finite number, a list of them (one per token or step), NaN where the reward declines
    to score (it returned None), or None where it failed. messages: what went wrong, one per
    response that it failed on. notes: what else to say. extras: further columns for samples.jsonl.
    metrics: numbers by the name that the function logs them as.
    """

    scores: list[Any] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extras: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def __add__(self, other: RewardReply) -> RewardReply:
        parts = [(self.extras, len(self.scores)), (other.extras, len(other.scores))]
        return RewardReply(
            self.scores + other.scores,
            self.messages + other.messages,
            self.notes + other.notes,
            joined_columns(parts),
            joined_lists([self.metrics, other.metrics]),
        )


def reply_of(answer: dict[str, Any]) -> RewardReply:
    """What a function answered (see `worker.answer`): a None that is no problem is no failure."""
    problems = {int(i): text for i, text in answer["problems"].items()}
    scores = [
        math.nan if score is None and i not in problems else score
        for i, score in enumerate(answer["scores"])
    ]
    logs = answer.get("extras", {}), answer.get("metrics", {})
    return RewardReply(scores, list(problems.values()), [], *logs)


def joined_columns(parts: list[tuple[dict[str, list[Any]], int]]) -> dict[str, list[Any]]:
    """Columns of several parts one after the other, None where a part lacks one; each part with its
    number of rows."""
    names = dict.fromkeys(name for columns, _ in parts for name in columns)
    return {
        name: [x for columns, rows in parts for x in columns.get(name, [None] * rows)]
        for name in names
    }


def joined_lists(parts: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Lists by their names, those of several parts one after the other."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: [x for part in parts for x in part.get(name, [])] for name in names}


class Reward(Protocol):
    """Scores responses; one failing sample never raises, its score is None."""

    name: str

    def submit(self, request: RewardRequest) -> Callable[[], RewardReply]:
        """Starts scoring; returns a function that waits for the reply and returns it."""
        ...

    def close(self) -> None:
        """Ends whatever it has started."""
        ...
