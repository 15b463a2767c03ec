"""What every run has in common: where it stands, when it saves, stops and evaluates."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lmpg.runs import checkpoint
from lmpg.runs.settings import AnyRunSettings
from lmpg.runs.tracking import Tracker
from lmpg.runtime.processes import Processes
from lmpg.runtime.signals import StopRequest
from lmpg.runtime.stopwatch import Stopwatch, peak_memory_gb
from lmpg.settings.section import RunStopped


@dataclass
class Progress:
    """Where a run stands, beside its policy and optimizer; plain numbers, all checkpointed."""

    step: int = 0
    num_steps: int = 0
    baseline: float | None = None
    coefs: dict[str, float] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Evaluated(Protocol):
    """What can be evaluated: `headline` is the figure by which `best/` is chosen; `unit` is what
    a step is called in metric names, `tokens` or `steps`."""

    headline: str
    lower_is_better: bool
    unit: str

    def evaluate(self) -> dict[str, float]:
        """Held-out figures as of now, the same on every rank."""
        ...


@dataclass(kw_only=True)
class Loop(ABC):
    """A run: its parts, and the loop over its iterations. `every` is that of evaluations.

    reached: after so many iterations, why the run ends before its last one; None: it goes on.
    """

    tracker: Tracker
    folder: Path
    settings: AnyRunSettings
    every: int
    total_steps: int
    processes: Processes
    save_policy: Callable[[Path], None]
    progress: Progress = field(default_factory=Progress)
    reached: Callable[[int], str | None] = lambda step: None
    _untold: dict[str, float] = field(default_factory=dict, init=False)

    @property
    @abstractmethod
    def evaluated(self) -> Evaluated:
        """What is evaluated before, after and in between."""

    @abstractmethod
    def iterate(self, step: int) -> dict[str, float]:
        """Learn once, and move `progress` on; returns the metrics of iteration `step` (from 1)."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken; metrics and samples are cut back to it."""

    def run(self) -> str:
        """Go on until `total_steps`; the exit reason, `finished` or `interrupted`."""
        if not self.progress.before:
            self.progress.before = self.evaluated.evaluate()
        with StopRequest(self.processes) as stop:
            while self.progress.step < self.total_steps:
                if reached := self.reached(self.progress.step):
                    self.tracker.say(f"ends before its last step: {reached}")
                    break
                self._step(self.progress.step + 1)
                if stop.requested():
                    self.save()
                    return "interrupted"
        if self.progress.step != checkpoint.newest_step(self.folder / "checkpoints"):
            self.save()
        return "finished"

    def save(self) -> None:
        """Write a checkpoint of this very moment; what it took is told with the next step."""
        watch = Stopwatch()
        with watch("time/checkpoint"):
            state = self.state()
            if self.processes.is_main:
                folder = self.folder / "checkpoints"
                checkpoint.save(folder, self.progress.step, state, self.settings.keep_checkpoints)
            self.processes.wait()
        self._untold = watch.seconds
        self._count(watch.seconds)

    def _step(self, step: int) -> None:
        watch = Stopwatch()
        steps_before = self.progress.num_steps
        try:
            metrics = self.iterate(step)
        except RunStopped:
            self.save()
            raise
        self.progress.step = step
        self._count(metrics)
        metrics |= self._totals(self.progress.num_steps - steps_before, watch.total())
        metrics |= self._untold
        self._untold = {}
        if self.every and step % self.every == 0:
            metrics |= {f"eval/{k}": v for k, v in self._evaluate_and_keep_best().items()}
        self.tracker.log(step, metrics)
        if self.settings.save_every and step % self.settings.save_every == 0:
            self.save()

    def _count(self, metrics: dict[str, float]) -> None:
        """Add up the seconds of each phase, for the summary."""
        spent = self.progress.seconds
        for name, value in metrics.items():
            if name.startswith("time/"):
                spent[name] = spent.get(name, 0.0) + value

    def _totals(self, steps: int, seconds: float) -> dict[str, float]:
        unit = self.evaluated.unit
        return {
            f"num_{unit}": self.progress.num_steps,
            f"perf/{unit}_per_second": steps / seconds,
            "perf/peak_memory_gb": peak_memory_gb(self.processes.device),
        }

    def _evaluate_and_keep_best(self) -> dict[str, float]:
        found = self.evaluated.evaluate()
        headline = self.evaluated.headline
        sign = -1 if self.evaluated.lower_is_better else 1
        best = self.progress.best.get(headline, -sign * math.inf)
        if sign * found[headline] > sign * best:
            self.progress.best = {**found, "step": self.progress.step}
            if self.processes.is_main:
                self.save_policy(self.folder / "best")
        return found
