"""The protocol of a source of rollouts: what the online loop needs of a wing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from lmpg.types import Rollout


@dataclass(frozen=True)
class Collected:
    """One iteration's rollout of all ranks, the same on each, and what there is to say of it.

    samples: rows for samples.jsonl, none where this step shows none.
    """

    rollout: Rollout
    metrics: dict[str, float]
    samples: list[dict[str, Any]] = field(default_factory=list)


class Source(Protocol):
    """Where rollouts come from: prompts and a sampler, or environments.

    headline, lower_is_better, unit: see `lmpg.training.loop.Evaluated`.
    """

    headline: str
    lower_is_better: bool
    unit: str

    def collect(self, step: int) -> Collected:
        """The rollout of iteration `step` (from 1), from the policy as it is now."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Held-out figures of the policy as it is now."""
        ...

    def state(self) -> dict[str, Any]:
        """What must be known to go on; {} where all of it follows from the step."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken."""
        ...
