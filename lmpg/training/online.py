"""The loop: rollout → credit → update, for language models and environments alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from lmpg.functional.advantages import explained_variance
from lmpg.functional.masking import masked_mean
from lmpg.runtime.stopwatch import Stopwatch
from lmpg.settings.section import RunStopped
from lmpg.training.kl_controller import steered, with_fields
from lmpg.training.loop import Loop, Progress
from lmpg.training.schedules import annealed
from lmpg.training.source import Source
from lmpg.training.update import Updater
from lmpg.types import Algorithm, Credit, Policy, Rollout

_ADVICE = {  # by the source's unit
    "tokens": "look at rewards in samples.jsonl, or use model.precision fp32",
    "steps": "or look for inf and NaN in what the environment shows and pays",
}


@dataclass(kw_only=True)
class Online(Loop):
    """Learning from one's own rollouts: the parts that are the algorithm's."""

    policy: Policy
    algorithm: Algorithm
    source: Source
    updater: Updater

    @property
    def evaluated(self) -> Source:
        """The source evaluates the policy."""
        return self.source

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
        self.algorithm = with_fields(self.algorithm, self.progress.coefs)

    def iterate(self, step: int) -> dict[str, float]:
        """Rollout → credit → update."""
        collected = self.source.collect(step)
        rollout = self._with_baseline(collected.rollout)
        algorithm = annealed(self.algorithm, self.updater.settings, step, self.total_steps)
        credit = algorithm.assign_credit(rollout)
        watch = Stopwatch()
        with watch("time/update"):
            updated = self.updater.update(algorithm, rollout, credit, step)
        metrics = {**collected.metrics, **credit_metrics(rollout, credit), **updated}
        self._stop_if_nothing_is_finite(step, metrics)
        self._advance(rollout, metrics)
        self.tracker.samples(step, collected.samples)
        return metrics | watch.seconds

    def _with_baseline(self, rollout: Rollout) -> Rollout:
        known = self.progress.baseline
        return rollout if known is None else replace(rollout, baseline=torch.tensor(known))

    def _advance(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """Move on everything that one iteration hands to the next."""
        self.progress.num_steps += int(rollout.mask_BT.sum())
        earned = metrics["objective/rlhf_reward"]
        decay = self.updater.settings.baseline_decay
        old = self.progress.baseline
        if rollout.scorable_B.any():  # else nothing was earned, not 0
            self.progress.baseline = earned if old is None else decay * old + (1 - decay) * earned
        coefs = steered(self.algorithm, metrics, len(rollout.mask_BT))
        self.progress.coefs |= coefs
        self.algorithm = with_fields(self.algorithm, coefs)
        metrics |= {f"objective/{name}": value for name, value in coefs.items()}

    def _stop_if_nothing_is_finite(self, step: int, metrics: dict[str, float]) -> None:
        if not math.isfinite(metrics["grad_norm"]):
            raise RunStopped(
                f"step {step}: every gradient was inf or NaN, so nothing could be learned from "
                f"this rollout. Lower update.learning_rate, {_ADVICE[self.source.unit]}; then "
                "resume from the last checkpoint"
            )


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
