"""What a reward is asked for, and what it replies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

GIVEN = ("prompts", "completions", "completion_ids")


@dataclass(frozen=True)
class RewardRequest:
    """B responses to be scored; every list has (or holds lists with) one entry per response.

    prompts: as the user wrote them. completions: as text.
    completion_steps: the pieces of each completion, where rewards may score each of them.
    token_indices: of each completion, the tokens that a process reward gives one number each; None
        if a reward may give one number per completion only.
    """

    prompts: list
    completions: list[str]
    completion_ids: list[list[int]]
    columns: dict[str, list]
    completion_steps: list[list[str]] | None = None
    token_indices: list[list[int]] | None = None

    def arguments(self) -> dict[str, list]:
        """Everything that a function may ask for; where a prompt is chat messages, functions get
        its completion as messages too: [{"role": "assistant", "content": ...}].
        """
        written = [
            completion
            if isinstance(prompt, str)
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

    scores: a finite number, a list of them (one per token or step), or None without a score.
    messages: what went wrong, one per response without a score. notes: what else to say.
    """

    scores: list[Any] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __add__(self, other: RewardReply) -> RewardReply:
        return RewardReply(
            self.scores + other.scores,
            self.messages + other.messages,
            self.notes + other.notes,
        )


class Reward(Protocol):
    """Scores responses; one failing sample never raises, its score is None."""

    name: str

    def submit(self, request: RewardRequest) -> Callable[[], RewardReply]:
        """Starts scoring; returns a function that waits for the reply and returns it."""
        ...

    def close(self) -> None:
        """Ends whatever it has started."""
        ...
