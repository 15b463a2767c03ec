"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Plain numbers that say where a run stands; checkpointed beside the policy and optimizer.

    iteration: how many are done. num_tokens_or_steps: tokens, or environment steps, that were
    learned from so far. baseline: running mean of the rollouts' returns. coefs: coefficients of the
    algorithm that have changed. before, best: held-out metrics. seconds: by phase. warnings: what
    went wrong, by kind.
    """

    iteration: int = 0
    num_tokens_or_steps: int = 0
    baseline: float | None = None
    coefs: dict[str, float] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, where the first two are called `step` and `num_steps`."""
        rest = dict(vars(self))
        steps = rest.pop("iteration"), rest.pop("num_tokens_or_steps")
        return {"step": steps[0], "num_steps": steps[1], **rest}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """The progress of the run that wrote this checkpoint."""
        rest = dict(state)
        return cls(rest.pop("step"), rest.pop("num_steps"), **rest)
