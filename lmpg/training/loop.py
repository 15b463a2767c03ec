"""The loop that every run shares: its progress, and when it saves, stops and evaluates."""

from __future__ import annotations

import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from lmpg.runs import checkpoint
from lmpg.runs.settings import AnyRunSettings
from lmpg.runs.tracking import Tracker
from lmpg.runtime.machine import Stopwatch, peak_memory_gb
from lmpg.runtime.processes import Processes
from lmpg.settings.section import RunStopped
from lmpg.training.source import Evaluable

ECHO_SECONDS = 1.0  # a launcher passes on the Ctrl-C that the terminal has sent to all already


@dataclass
class Progress:
    """Plain numbers that say where a run stands; checkpointed beside the policy and optimizer.

    iteration: how many are done. num_tokens_or_steps: tokens, or environment steps, that were
    learned from so far. baseline: running mean of the rollouts' returns. coefs: coefficients of the
    algorithm that have changed. before, best: held-out metrics. seconds: by phase.
    """

    iteration: int = 0
    num_tokens_or_steps: int = 0
    baseline: float | None = None
    coefs: dict[str, float] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

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


@dataclass(kw_only=True)
class Loop(ABC):
    """A run: its parts, and the loop over its iterations.

    source: is evaluated before, after, and after every `every` iterations. stop_reason: given the
    number of iterations done, says why the run ends before its last one; None if it goes on.
    """

    source: Evaluable
    tracker: Tracker
    folder: Path
    settings: AnyRunSettings
    every: int
    total_steps: int
    processes: Processes
    save_policy: Callable[[Path], None]
    progress: Progress = field(default_factory=Progress)
    stop_reason: Callable[[int], str | None] = lambda iteration: None
    _not_logged: dict[str, float] = field(default_factory=dict, init=False)

    @abstractmethod
    def iterate(self, iteration: int) -> dict[str, float]:
        """Learn once, and move `progress` on; returns the metrics of `iteration` (from 1)."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken; metrics and samples are cut back to it."""

    def run(self) -> str:
        """Go on until `total_steps`; the exit reason, `finished` or `interrupted`."""
        progress = self.progress
        if not progress.before:
            progress.before = self.source.evaluate()
        with StopRequest(self.processes) as stop:
            while progress.iteration < self.total_steps:
                if reason := self.stop_reason(progress.iteration):
                    self.tracker.say(f"ends before its last step: {reason}")
                    break
                self._step(progress.iteration + 1)
                if stop.requested():
                    self.save()
                    return "interrupted"
        if progress.iteration != checkpoint.newest_step(self.folder / "checkpoints"):
            self.save()
        return "finished"

    def save(self) -> None:
        """Write a checkpoint; the next iteration logs how long it took."""
        watch = Stopwatch()
        with watch("time/checkpoint"):
            state = self.state()
            if self.processes.is_main:
                folder, keep = self.folder / "checkpoints", self.settings.keep_checkpoints
                checkpoint.save(folder, self.progress.iteration, state, keep)
            self.processes.wait()
        self._not_logged = watch.seconds
        self._add_seconds(watch.seconds)

    def _step(self, iteration: int) -> None:
        """One iteration and all that is due after it."""
        watch, progress = Stopwatch(), self.progress
        before = progress.num_tokens_or_steps
        try:
            metrics = self.iterate(iteration)
        except RunStopped:
            self.save()
            raise
        progress.iteration = iteration
        self._add_seconds(metrics)
        done, name = progress.num_tokens_or_steps, self.source.step_name
        metrics |= {
            f"num_{name}": done,
            f"perf/{name}_per_second": (done - before) / watch.total(),
            "perf/peak_memory_gb": peak_memory_gb(self.processes.device),
            **self._not_logged,
        }
        self._not_logged = {}
        if self.every and iteration % self.every == 0:
            metrics |= {f"eval/{k}": v for k, v in self._evaluate_and_keep_best().items()}
        self.tracker.log(iteration, metrics)
        if self.settings.save_every and iteration % self.settings.save_every == 0:
            self.save()

    def _add_seconds(self, metrics: dict[str, float]) -> None:
        """Add up the seconds of each phase, for the summary."""
        spent = self.progress.seconds
        for name, value in metrics.items():
            if name.startswith("time/"):
                spent[name] = spent.get(name, 0.0) + value

    def _evaluate_and_keep_best(self) -> dict[str, float]:
        found, name = self.source.evaluate(), self.source.best_metric
        sign = -1 if self.source.lower_is_better else 1
        best = self.progress.best.get(name, -sign * math.inf)
        if sign * found[name] > sign * best:
            self.progress.best = {**found, "step": self.progress.iteration}
            if self.processes.is_main:
                self.save_policy(self.folder / "best")
        return found


class StopRequest:
    """Context in which the first Ctrl-C or SIGTERM is remembered instead of raised: the run ends
    after the iteration at hand, saved; a second one ends it at once."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._asked_at: float | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether any rank was asked to stop; every rank must call this together."""
        return any(self._processes.gather_list([self._asked_at is not None]))

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is not None:
            if now - self._asked_at > ECHO_SECONDS:
                raise KeyboardInterrupt
            return
        self._asked_at = now
        if self._processes.is_main:
            print("stopping after this iteration; once more to stop at once", flush=True)
