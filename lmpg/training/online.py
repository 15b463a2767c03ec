"""The loop: rollout → credit → update, for language models and environments alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from lmpg.functional.advantages import explained_variance
from lmpg.functional.kl import adapted_coef
from lmpg.functional.masking import masked_mean
from lmpg.sections import UserError
from lmpg.training import checkpoint
from lmpg.training.processes import Processes
from lmpg.training.settings import AnyRunSettings, EvaluationSettings
from lmpg.training.stopping import StopRequest
from lmpg.training.stopwatch import Stopwatch, peak_memory_gb
from lmpg.training.tracking import Tracker
from lmpg.training.update import Updater
from lmpg.types import Algorithm, Credit, Policy, Rollout


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

    headline: the evaluation figure by which `best/` is chosen. unit: what a step is called in
    metric names, `tokens` or `steps`.
    """

    headline: str
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


class RunStopped(UserError):
    """The run can't go on, but nothing before this iteration is lost: it was saved."""


@dataclass
class Progress:
    """Where a run stands, beside its policy and optimizer; plain numbers, all checkpointed."""

    step: int = 0
    num_steps: int = 0
    baseline: float | None = None
    kl_coef: float | None = None
    before: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Online:
    """A run: its parts, and the loop over them."""

    policy: Policy
    algorithm: Algorithm
    source: Source
    updater: Updater
    tracker: Tracker
    folder: Path
    settings: AnyRunSettings
    evaluation: EvaluationSettings
    total_steps: int
    processes: Processes
    save_policy: Callable[[Path], None]
    progress: Progress = field(default_factory=Progress)

    def run(self) -> str:
        """Go on until `total_steps`; the exit reason, `finished` or `interrupted`."""
        if not self.progress.before:
            self.progress.before = self.source.evaluate()
        with StopRequest(self.processes) as stop:
            while self.progress.step < self.total_steps:
                self._iterate(self.progress.step + 1)
                if stop.requested():
                    self.save()
                    return "interrupted"
        if self.progress.step != checkpoint.newest_step(self.folder / "checkpoints"):
            self.save()
        return "finished"

    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""
        return {
            "policy": self.policy.trainable_state(),
            "updater": self.updater.state(),
            "source": self.source.state(),
            "tracker": self.tracker.state(),
            "progress": vars(self.progress),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken; metrics and samples are cut back to it."""
        self.policy.load_trainable_state(state["policy"])
        self.updater.load_state(state["updater"])
        self.source.load_state(state["source"])
        self.progress = Progress(**state["progress"])
        self.tracker.cut_back(state["tracker"])
        if self.progress.kl_coef is not None:
            self.algorithm = with_kl_coef(self.algorithm, self.progress.kl_coef)

    def save(self) -> None:
        """Write a checkpoint of this very moment."""
        state = self.state()
        if self.processes.is_main:
            folder = self.folder / "checkpoints"
            checkpoint.save(folder, self.progress.step, state, self.settings.keep_checkpoints)
        self.processes.wait()

    def _iterate(self, step: int) -> None:
        watch = Stopwatch()
        try:
            collected = self.source.collect(step)
        except RunStopped:
            self.save()
            raise
        rollout = self._with_baseline(collected.rollout)
        credit = self.algorithm.assign_credit(rollout)
        with watch("time/update"):
            updated = self.updater.update(self.algorithm, rollout, credit, step)
        metrics = {**collected.metrics, **credit_metrics(rollout, credit), **updated}
        self._stop_if_nothing_is_finite(metrics)
        self._advance(step, rollout, metrics)
        if self.evaluation.every and step % self.evaluation.every == 0:
            metrics |= {f"eval/{k}": v for k, v in self._evaluate_and_keep_best().items()}
        unit = self.source.unit
        metrics |= watch.seconds | {f"num_{unit}": self.progress.num_steps}
        metrics[f"perf/{unit}_per_second"] = int(rollout.mask_BT.sum()) / watch.total()
        self._log(step, metrics, collected.samples)
        if self.settings.save_every and step % self.settings.save_every == 0:
            self.save()

    def _with_baseline(self, rollout: Rollout) -> Rollout:
        known = self.progress.baseline
        return rollout if known is None else replace(rollout, baseline=torch.tensor(known))

    def _advance(self, step: int, rollout: Rollout, metrics: dict[str, float]) -> None:
        """Move on everything that one iteration hands to the next."""
        self.progress.step = step
        self.progress.num_steps += int(rollout.mask_BT.sum())
        earned = metrics["objective/rlhf_reward"]
        decay = self.updater.settings.baseline_decay
        old = self.progress.baseline
        self.progress.baseline = earned if old is None else decay * old + (1 - decay) * earned
        target = getattr(self.algorithm, "kl_target", None)
        if target is not None:
            used = self.algorithm.kl_coef  # type: ignore[attr-defined]
            kl_coef = adapted_coef(used, metrics["objective/kl"], target)
            self.algorithm = with_kl_coef(self.algorithm, kl_coef)
            self.progress.kl_coef = kl_coef
            metrics["objective/kl_coef"] = kl_coef

    def _stop_if_nothing_is_finite(self, metrics: dict[str, float]) -> None:
        if not math.isfinite(metrics["grad_norm"]):
            raise RunStopped(
                f"step {self.progress.step + 1}: every gradient was inf or NaN, so nothing could "
                "be learned from this rollout. Lower update.learning_rate, look at rewards in "
                "samples.jsonl, or use model.precision fp32; then resume from the last checkpoint"
            )

    def _evaluate_and_keep_best(self) -> dict[str, float]:
        found = self.source.evaluate()
        headline = self.source.headline
        if found[headline] > self.progress.best.get(headline, -math.inf):
            self.progress.best = {**found, "step": self.progress.step}
            if self.processes.is_main:
                self.save_policy(self.folder / "best")
        return found

    def _log(self, step: int, metrics: dict[str, float], samples: list[dict[str, Any]]) -> None:
        for name, spent in metrics.items():
            if name.startswith("time/"):
                total = self.progress.seconds.get(name, 0.0)
                self.progress.seconds[name] = total + spent
        metrics["perf/peak_memory_gb"] = peak_memory_gb(self.processes.device)
        self.tracker.log(step, metrics)
        self.tracker.samples(step, samples)


def with_kl_coef(algorithm: Algorithm, kl_coef: float) -> Algorithm:
    """The same algorithm with another KL coefficient, validated anew."""
    fields = algorithm.model_dump()  # type: ignore[attr-defined]
    return type(algorithm)(**{**fields, "kl_coef": kl_coef})


def credit_metrics(rollout: Rollout, credit: Credit) -> dict[str, float]:
    """What the algorithm was paid and what it made of it: means over the scorable rows."""
    scorable_B = rollout.scorable_B
    paid_B = masked_mean((credit.rewards_BT * rollout.mask_BT).sum(1), scorable_B)
    scores = masked_mean(rollout.scores_B, scorable_B)
    found = {
        "objective/rlhf_reward": float(paid_B),
        "objective/non_score_reward": float(paid_B - scores),
        "policy/advantage_abs_mean": float(
            masked_mean(credit.advantages_BT.abs(), rollout.counted_BT)
        ),
    }
    if credit.returns_BT is not None and rollout.values_BT is not None:
        explained = explained_variance(rollout.values_BT, credit.returns_BT, rollout.counted_BT)
        found["value/explained_variance"] = float(explained)
    return found
