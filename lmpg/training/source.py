"""Protocols that each wing implements: a source of rollouts and of held-out metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from lmpg.types import Rollout


class Evaluable(Protocol):
    """Anything that a run can evaluate.

    best_metric: the metric by which `best/` is chosen. step_name: what metric names call the steps
    that `Progress` counts, `tokens` or `steps`.
    """

    best_metric: str
    lower_is_better: bool
    step_name: str

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics of the present policy, the same on every rank."""
        ...


@dataclass(frozen=True)
class Collected:
    """One iteration's rollout of all ranks, the same on each, with its metrics.

    samples: rows for samples.jsonl; [] in an iteration that writes none.
    """

    rollout: Rollout
    metrics: dict[str, float]
    samples: list[dict[str, Any]] = field(default_factory=list)


class Source(Evaluable, Protocol):
    """A source of rollouts: prompts and a generator, or environments.

    advice: what to look at when no gradient of an update was finite.
    """

    advice: str

    def collect(self, iteration: int) -> Collected:
        """The rollout of `iteration` (from 1), sampled from the present policy."""
        ...

    def state(self) -> dict[str, Any]:
        """State for a checkpoint; {} if everything follows from the iteration."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken."""
        ...
