"""The loop that every run shares: its progress, and when it saves, stops and evaluates."""

from __future__ import annotations

import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from lmpg.runs import checkpoint
from lmpg.runs.files import UNWRITABLE, replace_folder
from lmpg.runs.lock import lock_of
from lmpg.runs.settings import AnyRunSettings
from lmpg.runs.tracking import Tracker
from lmpg.runtime.machine import Stopwatch, peak_memory_gb
from lmpg.runtime.processes import Processes
from lmpg.settings.section import Diverged, RunStopped
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
    stopped_by: int | None = field(default=None, init=False)
    """The signal that asked the run to stop."""
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
                self.stopped_by, problems = stop.requested(self._problem())
                if any(problems):
                    raise RunStopped(next(filter(None, problems)))
                if self.stopped_by:
                    self.save()
                    return "interrupted"
        if progress.iteration != checkpoint.newest_step(self.folder / "checkpoints"):
            self.save()
        self.write(lambda: checkpoint.prune(self._checkpoints, self.settings.keep_checkpoints))
        return "finished"

    def save(self) -> None:
        """Write a checkpoint; the next iteration logs how long it took.

        Whether its weights can learn is known after the next iteration: until then the one before
        stays, even where a single one is to be kept.
        """
        watch = Stopwatch()
        with watch("time/checkpoint"):
            state, keep = self.state(), max(2, self.settings.keep_checkpoints)
            step = self.progress.iteration
            self.write(lambda: checkpoint.save(self._checkpoints, step, state, keep))
        self._not_logged = watch.seconds
        self._add_seconds(watch.seconds)

    def write(self, action: Callable[[], object]) -> None:
        """Let the main process write into the run's folder; RunStopped on every rank where that is
        impossible (a full disk)."""

        def problem() -> str | None:
            try:
                action()
            except UNWRITABLE as error:
                return str(error)
            return None

        if found := self.processes.on_main(problem):
            raise RunStopped(
                f"{self.folder} cannot be written: {found}. {self._last_checkpoint()}; make room, "
                "then go on with the same command and --run.resume"
            )

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _last_checkpoint(self) -> str:
        step = self.processes.on_main(lambda: checkpoint.newest_step(self._checkpoints))
        return "There is no checkpoint yet" if step is None else f"The last is of step {step}"

    def _problem(self) -> str | None:
        """Why this process cannot go on writing to the run's folder; None where it can."""
        lock = lock_of(self.folder)
        where = lock.whereabouts() if lock else self.folder
        if where is None:
            return (
                f"{self.folder} was deleted while the run went on, and all that was saved with it"
            )
        if where != self.folder:
            moved, self.folder = self.folder, where
            checkpoint.save(
                self._checkpoints,
                self.progress.iteration,
                self.state(),
                self.settings.keep_checkpoints,
            )
            return (
                f"{moved} was moved to {where} while the run went on. It is saved there; go on "
                f"with the same command, --run.output-dir {where} and --run.resume"
            )
        return self.tracker.problem

    def _step(self, iteration: int) -> None:
        """One iteration and all that is due after it."""
        watch, progress = Stopwatch(), self.progress
        before = progress.num_tokens_or_steps
        try:
            metrics = self.iterate(iteration)
        except Diverged as error:
            raise RunStopped(f"{error}. {self._last_good()}") from None
        except RunStopped:
            self.save()
            raise
        if self.settings.keep_checkpoints == 1:  # the newest can learn
            self.write(lambda: checkpoint.prune(self._checkpoints, 1))
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

    def _last_good(self) -> str:
        """Set the checkpoint of the present weights aside, if there is one: they cannot learn.
        Returns what to do."""
        step = self.progress.iteration
        self.write(lambda: checkpoint.set_aside(self._checkpoints, step))
        good = self.processes.on_main(lambda: checkpoint.newest_step(self._checkpoints))
        start = "the start, as there is no earlier checkpoint"
        where = start if good is None else f"step {good}, the last good checkpoint"
        return f"Then the same command with --run.resume goes on from {where}"

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
            self.write(lambda: replace_folder(self.folder / "best", self.save_policy))
        return found


class StopRequest:
    """Context in which the first Ctrl-C, SIGTERM or SIGHUP (the terminal was closed) is remembered
    instead of raised: the run ends after the iteration at hand, saved; a second ends it at once."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._asked: int | None = None
        self._asked_at = 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets the main thread alone hear signals, and they are its own
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if not (ignored and number == signal.SIGHUP):  # nohup
                self._old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def requested(self, problem: str | None = None) -> tuple[int | None, list[str | None]]:
        """The signal by which any rank was asked to stop, and every rank's problem; every rank must
        call this together."""
        found = self._processes.gather_list([(self._asked, problem)])
        return next((number for number, _ in found if number), None), [text for _, text in found]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked is not None:
            if now - self._asked_at > ECHO_SECONDS:
                raise interruption(number)
            return
        self._asked, self._asked_at = number, now
        if self._processes.is_main:
            print("stopping after this iteration; once more to stop at once", flush=True)


def interruption(number: int) -> BaseException:
    """What a signal ends a program with: KeyboardInterrupt for Ctrl-C, else the exit code by which
    shells tell that the program was ended by it."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
