"""Scores of responses by several rewards, and what functions have logged beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmpg.language.rewards.request import joined_columns, joined_lists

MAX_WARNINGS = 5  # of each reward
Step = tuple[int, float]


@dataclass(frozen=True)
class Scores:
    """Scores of B responses.

    totals: weighted sum over the rewards; None for a response that one of them failed on.
    errors: number of such responses. messages: what went wrong, each kind once, with its count.
    steps: per response the (token index, weighted reward) pairs of process rewards, which are
        part of its total; in the order of the tokens, each once.
    extras: further columns of samples.jsonl that functions gave. logged: numbers that they gave.
    """

    totals: list[float | None]
    by_reward: dict[str, list[float | None]]
    errors: int
    messages: list[str]
    steps: list[list[Step]]
    extras: dict[str, list[Any]] = field(default_factory=dict)
    logged: dict[str, list[float]] = field(default_factory=dict)

    def rows(self, index: list[int]) -> Scores:
        """The scores with only the responses in `index`, in that order."""
        totals = [self.totals[i] for i in index]
        by_reward = {name: [x[i] for i in index] for name, x in self.by_reward.items()}
        steps = [self.steps[i] for i in index]
        extras = {name: [x[i] for i in index] for name, x in self.extras.items()}
        errors = totals.count(None)
        return Scores(totals, by_reward, errors, self.messages, steps, extras, self.logged)

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of all parts, in their order."""
        if len(parts) == 1:
            return parts[0]
        names = parts[0].by_reward
        return cls(
            totals=[x for part in parts for x in part.totals],
            by_reward={name: [x for part in parts for x in part.by_reward[name]] for name in names},
            errors=sum(part.errors for part in parts),
            messages=[x for part in parts for x in part.messages],
            steps=[x for part in parts for x in part.steps],
            extras=joined_columns([(part.extras, len(part.totals)) for part in parts]),
            logged=joined_lists([part.logged for part in parts]),
        )


def listed(messages: list[str]) -> str:
    """The first kinds of what went wrong, a line each, to end an error with."""
    return "".join(f"\n  {text}" for text in list(dict.fromkeys(messages))[:MAX_WARNINGS])
