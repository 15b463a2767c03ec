"""The loop that every run shares: its progress, and when it saves, stops and evaluates."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lmpg.runs import checkpoint
from lmpg.runs.disk import disk_lines
from lmpg.runs.files import replace_folder, unwritable
from lmpg.runs.lock import lock_of
from lmpg.runs.saved.checkpoint_parts import has_parts
from lmpg.runs.saved.run_progress import Progress
from lmpg.runs.saved.state_encoding import num_bytes
from lmpg.runs.settings import AnyRunSettings
from lmpg.runs.tracking import Tracker
from lmpg.runtime.machine import Stopwatch, peak_memory_gb
from lmpg.runtime.parts import mine
from lmpg.runtime.processes import Processes
from lmpg.settings.section import Diverged, RunStopped
from lmpg.training.on_step import OnStep, call_on_step
from lmpg.training.source import Evaluable
from lmpg.training.stop_request import StopRequest


@dataclass(kw_only=True)
class Loop(ABC):
    """A run: its parts, and the loop over its iterations.

    source: is evaluated before, after, and after every `every` iterations. stop_reason: given the
    number of iterations done, says why the run ends before its last one; None if it goes on.
    after_step: is given each iteration and its metrics; its own go to the next iteration. on_step:
    the same for the main process alone; what it returns, "stop" ends the run.
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
    after_step: Callable[[int, dict[str, float]], dict[str, float]] = lambda iteration, metrics: {}
    on_step: OnStep | None = None
    stopped_by: int | None = field(default=None, init=False)
    """The signal that asked the run to stop."""
    _not_logged: dict[str, float] = field(default_factory=dict, init=False)

    @abstractmethod
    def iterate(self, iteration: int) -> dict[str, float]:
        """Learn once, and move `progress` on; returns the metrics of `iteration` (from 1)."""

    @abstractmethod
    def weights(self) -> Iterable[Tensor]:
        """All that is trained."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken; metrics and samples are cut back to it."""

    def bytes_to_come(self) -> int:
        """Bytes that a first step adds to the state."""
        return 0

    def refuse_full_disk(self) -> list[str]:
        """Lines for the log about the disk that the run needs; UserError where it lacks room."""
        checkpoint_bytes = num_bytes(self.state()) + self.bytes_to_come()
        model, keep = sum(x.nbytes for x in self.weights()), self.settings.keep_checkpoints
        need = checkpoint_bytes, model, 2 if self.every else 1, keep
        return self.processes.on_main(lambda: disk_lines(self.folder, *need))

    def run(self) -> str:
        """Go on until `total_steps`; the exit reason, `finished` or `interrupted`."""
        progress = self.progress
        if not progress.before:
            progress.before = self.source.evaluate()
        with StopRequest(self.processes) as stop, self.processes.in_pace():
            while progress.iteration < self.total_steps:
                if reason := self.stop_reason(progress.iteration):
                    self.tracker.say(f"ends before its last step: {reason}")
                    break
                metrics = self._step(progress.iteration + 1)
                self.stopped_by, problems = stop.requested(self._problem())
                if any(problems):
                    raise RunStopped(next(filter(None, problems)))
                if self.stopped_by:
                    self.save()
                    return "interrupted"
                if self._is_told_to_stop(metrics):
                    self.tracker.say("ends before its last step: on_step returned 'stop'")
                    break
        self._save_unless_saved()
        return "finished"

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics at the end; RunStopped where the last step has ruined the weights."""
        return self._evaluated()

    def _evaluated(self) -> dict[str, float]:
        self._refuse_ruined_weights()
        try:
            found = self.source.evaluate()
            if math.isnan(found.get("loss", 0.0)):
                raise Diverged(_ruined(self.progress.iteration, "whose held-out loss is NaN"))
        except Diverged as error:
            raise self._without_these_weights(error) from None
        return found

    def prune(self) -> None:
        """Delete all checkpoints but those to be kept, once the newest is known to be good."""
        self.write(lambda: checkpoint.prune(self._checkpoints, self.settings.keep_checkpoints))

    def save(self) -> None:
        """Write a checkpoint, unless the weights are ruined; the next iteration logs how long it
        took.

        Whether its weights can learn is known after the next iteration: until then the one before
        stays, even where a single one is to be kept.
        """
        self._refuse_ruined_weights()
        watch = Stopwatch()
        with watch("time/checkpoint"):
            self._write_checkpoint(self.state(), max(2, self.settings.keep_checkpoints))
        self._log_later(watch.seconds)

    def _write_checkpoint(self, state: dict[str, Any], keep: int) -> None:
        """By the main process, or where the state is shared out by all of them."""
        what = self._checkpoints, self.progress.iteration, state, keep
        if not has_parts(state):
            self.write(lambda: checkpoint.save(*what))
            return
        problem = unwritable(lambda: checkpoint.save_parts(*what, self.processes))
        if found := next(filter(None, self.processes.gather_list([problem])), None):
            raise self._cannot_be_written(found)

    def _save_unless_saved(self) -> None:
        """Save this step if it is not. One rank is asked: another may look once it is saved."""
        if self.progress.iteration != self._newest_step():
            self.save()

    def write(self, action: Callable[[], object]) -> None:
        """Let the main process write into the run's folder; RunStopped on every rank where that is
        impossible (a full disk)."""

        if found := self.processes.on_main(lambda: unwritable(action)):
            raise self._cannot_be_written(found)

    def _cannot_be_written(self, problem: str) -> RunStopped:
        return RunStopped(
            f"{self.folder} cannot be written: {problem}. {self._last_checkpoint()}; make room, "
            "then go on with the same command and --run.resume"
        )

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _newest_step(self) -> int | None:
        """The step of the newest whole checkpoint, as the main process sees it; None without."""
        return self.processes.on_main(lambda: checkpoint.newest_step(self._checkpoints))

    def _last_checkpoint(self) -> str:
        return self.processes.on_main(self._newest_there)

    def _newest_there(self) -> str:
        step = checkpoint.newest_step(self._checkpoints)
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
            moved, self.folder, state = self.folder, where, self.state()
            step, keep = self.progress.iteration, self.settings.keep_checkpoints
            saved = self._newest_there()
            if not has_parts(state):  # which all processes would have to save together
                checkpoint.save(self._checkpoints, step, state, keep)
                saved = "It is saved there"
            return (
                f"{moved} was moved to {where} while the run went on. {saved}; go on "
                f"with the same command, --run.output-dir {where} and --run.resume"
            )
        return self.tracker.problem

    def _step(self, iteration: int) -> dict[str, float]:
        """One iteration and all that is due after it; returns what is logged of it."""
        watch, progress = Stopwatch(), self.progress
        before = progress.num_tokens_or_steps
        try:
            metrics = self.iterate(iteration)
        except Diverged as error:
            raise self._without_these_weights(error) from None
        except RunStopped:
            self.save()
            raise
        if self.settings.keep_checkpoints == 1:  # the newest can learn
            self.prune()
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
        self._log_later(self.after_step(iteration, metrics))
        if self.settings.save_every and iteration % self.settings.save_every == 0:
            self.save()
        return metrics

    def _is_told_to_stop(self, metrics: dict[str, float]) -> bool:
        """Whether `on_step` wants no further iteration; what it raises ends the run, saved."""
        if self.on_step is None:
            return False
        iteration = self.progress.iteration
        stop, error = call_on_step(self.on_step, iteration, metrics, self.processes)
        if error is not None:
            self._save_unless_saved()
            raise error
        return stop

    def _refuse_ruined_weights(self) -> None:
        """RunStopped where a step has left weights that are inf or NaN: no step may follow whose
        gradients would tell."""
        sound = all(bool(mine(x).isfinite().all()) for x in self.weights())
        if not all(self.processes.gather_list([sound])):
            said = _ruined(self.progress.iteration, "some of which are inf or NaN")
            raise self._without_these_weights(Diverged(said))

    def _without_these_weights(self, error: Diverged) -> RunStopped:
        """Set the checkpoint of the present weights aside, if there is one: they cannot learn.
        Returns what to say."""
        step = self.progress.iteration
        self.write(lambda: checkpoint.set_aside(self._checkpoints, step))
        good = self._newest_step()
        start = "the start, as there is no earlier checkpoint"
        where = start if good is None else f"step {good}, the last good checkpoint"
        return RunStopped(f"{error}. Then the same command with --run.resume goes on from {where}")

    def _log_later(self, metrics: dict[str, float]) -> None:
        """Metrics of what follows an iteration, which the next one logs."""
        self._not_logged |= metrics
        self._add_seconds(metrics)

    def _add_seconds(self, metrics: dict[str, float]) -> None:
        """Add up the seconds of each phase, for the summary."""
        spent = self.progress.seconds
        for name, value in metrics.items():
            if name.startswith("time/"):
                spent[name] = spent.get(name, 0.0) + value

    def _evaluate_and_keep_best(self) -> dict[str, float]:
        found, name = self._evaluated(), self.source.best_metric
        sign = -1 if self.source.lower_is_better else 1
        best = self.progress.best.get(name, -sign * math.inf)
        if sign * found[name] > sign * best:
            self.progress.best = {**found, "step": self.progress.iteration}
            self.write(lambda: replace_folder(self.folder / "best", self.save_policy))
        return found


def _ruined(step: int, how: str) -> str:
    return f"step {step} has left weights {how}. Lower update.learning_rate or update.max_grad_norm"
