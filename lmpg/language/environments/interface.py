"""What a text environment is: gymnasium's `reset` and `step`, where observations and actions are
text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

Observation = str | list[dict[str, Any]]
"""Text, or chat messages."""


def beginning(observation: Observation, count: int) -> Observation | None:
    """The first `count` characters of an observation; None where it has no more."""
    if isinstance(observation, str):
        return observation[:count] if len(observation) > count else None
    left, found = count, list[dict[str, Any]]()
    for message in observation:
        text = message.get("content")
        if isinstance(text, str):
            message = {**message, "content": text[: max(0, left)]}
            left -= len(text)
        found.append(message)
    return found if left < 0 else None


class TextEnvironment(Protocol):
    """An episode of text; a class with these two methods is one, and either may be async.

    An instance is made for every episode. It may have `close()`, and `tools`: a list of JSON
    schemas for the chat template.
    """

    def reset(self, *, seed: int, options: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """Begins the episode that follows from the seed and from `options`, a row of the data.

        The first observation, which is the prompt (None for the row's own), and info.
        """
        ...

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """What follows a turn of the policy: observation, reward, terminated, truncated, info.

        action: the text of the turn, without the EOS that ended it.
        """
        ...


@dataclass(frozen=True)
class Outcome:
    """What `reset` or `step` of one row gave, checked, as plain data.

    error: why the row is lost, None where it is not; such a row has no score, as one that a reward
    failed on. nonsense: whether what was returned is wrong; else something was raised, or nothing
    came. tools: schemas for the chat template. template_kwargs: its variables from the row.
    """

    observation: Observation = ""
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    nonsense: bool = False
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def is_last(self) -> bool:
        """Whether the episode has ended with it."""
        return self.terminated or self.truncated or self.error is not None
