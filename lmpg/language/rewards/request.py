"""What a reward is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

# A finite score; one number per token or step; or nothing, where there is no score.
Value = float | list[float] | None
GIVEN = ("prompts", "completions", "completion_ids")


@dataclass(frozen=True)
class Batch:
    """B responses to be scored; every list has (or holds lists with) one entry per response.

    prompts: as the user wrote them. completions: as text.
    completion_steps: the pieces of each completion, where rewards may score each of them.
    places: the token indices for which a process reward has one number each; None if it may not.
    """

    prompts: list
    completions: list[str]
    completion_ids: list[list[int]]
    columns: dict[str, list]
    completion_steps: list[list[str]] | None = None
    places: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.completions)

    def given(self) -> dict[str, list]:
        """Everything that a function may ask for; where a prompt is chat messages, functions get
        its completion as messages too: [{"role": "assistant", "content": ...}].
        """
        written = [_as_written(p, c) for p, c in zip(self.prompts, self.completions)]
        given = {**self.columns, **dict(zip(GIVEN, (self.prompts, written, self.completion_ids)))}
        if self.completion_steps is not None:
            given["completion_steps"] = self.completion_steps
        return given


@dataclass
class Answer:
    """What a reward made of a batch: one value per response.

    messages: what went wrong, one per response without a score. notes: what else to say.
    """

    values: list[Any] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __add__(self, other: Answer) -> Answer:
        return Answer(
            self.values + other.values,
            self.messages + other.messages,
            self.notes + other.notes,
        )


class Pending(Protocol):
    """A batch that is being scored."""

    def result(self) -> Answer:
        """The answer, as soon as it is there."""
        ...


class Reward(Protocol):
    """Scores responses; one failing sample never raises, its value is None."""

    name: str

    def submit(self, batch: Batch) -> Pending:
        """Begins to score `batch`."""
        ...

    def close(self) -> None:
        """Ends whatever it has started."""
        ...


def _as_written(prompt: Any, completion: str) -> Any:
    if isinstance(prompt, str):
        return completion
    return [{"role": "assistant", "content": completion}]
