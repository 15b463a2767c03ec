"""Where learning gets its rollouts and its held-out metrics from: what each wing must provide."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from lmpg.types import Rollout


class Evaluable(Protocol):
    """What a run can evaluate.

    best_metric: the metric by which `best/` is chosen. step_name: what metric names call the steps
    that `Progress` counts, `tokens` or `steps`.
    """

    best_metric: str
    lower_is_better: bool
    step_name: str

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics as of now, the same on every rank."""
        ...


@dataclass(frozen=True)
class Collected:
    """One iteration's rollout of all ranks, the same on each, and what there is to say of it.

    samples: rows for samples.jsonl; none where this iteration shows none.
    """

    rollout: Rollout
    metrics: dict[str, float]
    samples: list[dict[str, Any]] = field(default_factory=list)


class Source(Evaluable, Protocol):
    """Where rollouts come from: prompts and a generator, or environments.

    advice: what to look at when no gradient of an update was finite.
    """

    advice: str

    def collect(self, iteration: int) -> Collected:
        """The rollout of `iteration` (from 1), from the policy as it is now."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on; {} where all of it follows from the iteration."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken."""
        ...
