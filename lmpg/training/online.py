"""Online learning: rollout → credit → update, for language models and environments alike."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lmpg.functional.advantages import explained_variance
from lmpg.functional.masking import masked_mean
from lmpg.runs.saved.run_progress import Progress
from lmpg.runtime.machine import Stopwatch
from lmpg.settings.section import Diverged
from lmpg.training.annealing import annealed, with_fields
from lmpg.training.kl_controller import adapted
from lmpg.training.loop import Loop
from lmpg.training.optimizer import bytes_to_come
from lmpg.training.settings import TARGETS
from lmpg.training.source import Source
from lmpg.training.token_view import logprobs_before, logprobs_now, shows_tokens, with_credit
from lmpg.training.update import Updater
from lmpg.types import Algorithm, Credit, Policy, Rollout

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Online(Loop):
    """Learns from the policy's own rollouts.

    adaptive: whether a coefficient of the algorithm is adapted to hold a KL to its target.
    warned: whether a rollout without any advantage was reported.
    """

    policy: Policy
    algorithm: Algorithm
    source: Source
    updater: Updater
    adaptive: bool = field(init=False)
    warned: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.adaptive = any(getattr(self.algorithm, target, None) for target in TARGETS)

    def weights(self) -> Iterable[Tensor]:
        """All that is trained."""
        return self.policy.trainable_state().values()

    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""
        return {
            "policy": self.policy.trainable_state(),
            "updater": self.updater.state(),
            "source": self.source.state(),
            "tracker": self.tracker.state(),
            "progress": self.progress.state(),
        }

    def bytes_to_come(self) -> int:
        """Bytes that a first step adds to the state: the optimizer's."""
        return bytes_to_come(self.updater.optimizer, self.updater.settings)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken; metrics and samples are cut back to it."""
        self.policy.load_trainable_state(state["policy"])
        self.updater.load_state(state["updater"])
        self.source.load_state(state["source"])
        self.progress = Progress.from_state(state["progress"])
        self.tracker.cut_back(state["tracker"])
        self.algorithm = with_fields(self.algorithm, self.progress.coefs)

    def iterate(self, iteration: int) -> dict[str, float]:
        """Rollout → credit → update; returns the metrics."""
        collected = self.source.collect(iteration)
        rollout, algorithm = collected.rollout, self.algorithm
        if self.progress.baseline is not None:
            rollout = replace(rollout, baseline=torch.tensor(self.progress.baseline))
        if self.updater.settings.anneal:
            algorithm = annealed(algorithm, self.updater.settings, iteration, self.total_steps)
        credit = algorithm.assign_credit(rollout)
        views = self.processes.is_main and shows_tokens(collected.samples)
        shown = self.policy, rollout, len(collected.samples), self.updater.settings
        old_BT = logprobs_before(*shown, self.updater.old_logprobs) if views else None
        watch = Stopwatch()
        with watch("time/update"):
            updated = self.updater.update(algorithm, rollout, credit, iteration)
        metrics = {**collected.metrics, **credit_metrics(rollout, credit), **updated}
        if not math.isfinite(metrics["grad_norm"]):
            raise Diverged(
                f"step {iteration}: every gradient was inf or NaN, so nothing could be learned "
                "from this rollout. Lower update.learning_rate or update.max_grad_norm, "
                f"{self.source.advice}"
            )
        self._warn_if_nothing_is_learned(rollout, credit)
        self._advance(rollout, metrics)
        samples = collected.samples
        if old_BT is not None:
            ratio_BT = (logprobs_now(*shown) - old_BT).exp()
            samples = with_credit(samples, rollout, credit, ratio_BT)
        if samples:
            self.tracker.samples(iteration, samples)
        return metrics | watch.seconds

    def _warn_if_nothing_is_learned(self, rollout: Rollout, credit: Credit) -> None:
        """Once: an iteration that teaches nothing looks like any other in the log."""
        counted_BT = rollout.counted_BT
        taught = (credit.advantages_BT * counted_BT).any() or not rollout.learned_BT.any()
        if self.warned or taught:  # the source tells of rows that do not count
            return
        self.warned = True
        why = "all advantages are 0, so no response or action is better than another"
        if credit.learned_B is not None:
            why = "no response is kept, as all score less than algorithm.min_score"
        elif self.algorithm.group_size > 1:
            why = "the responses of each group have the same score, so none is better than another"
        if self.processes.is_main:
            logger.warning("nothing can be learned from this step: %s (said once)", why)

    def _advance(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """Update what the next iteration starts from: counters, baseline and coefficients."""
        progress = self.progress
        progress.num_tokens_or_steps += int(rollout.mask_BT.sum())
        if rollout.scorable_B.any():  # else there was no return, not one of 0
            mean_return = metrics["objective/rlhf_reward"]
            old, decay = progress.baseline, self.updater.settings.baseline_decay
            progress.baseline = (
                mean_return if old is None else decay * old + (1 - decay) * mean_return
            )
        if self.adaptive:
            coefs = adapted(self.algorithm, metrics, len(rollout.mask_BT))
            progress.coefs |= coefs
            self.algorithm = with_fields(self.algorithm, coefs)
            metrics |= {f"objective/{name}": value for name, value in coefs.items()}


def credit_metrics(rollout: Rollout, credit: Credit) -> dict[str, float]:
    """Rewards and advantages of a rollout: means over the scorable rows."""
    scorable_B = rollout.scorable_B
    returns = masked_mean((credit.rewards_BT * rollout.mask_BT).sum(1), scorable_B)
    scores = masked_mean(rollout.scores_B, scorable_B)
    advantages = masked_mean(credit.advantages_BT.abs(), rollout.counted_BT)
    metrics = {
        "objective/rlhf_reward": float(returns),
        "objective/non_score_reward": float(returns - scores),
        "policy/advantage_abs_mean": float(advantages),
    }
    if credit.returns_BT is not None and rollout.values_BT is not None:
        explained = explained_variance(rollout.values_BT, credit.returns_BT, rollout.counted_BT)
        metrics["value/explained_variance"] = float(explained)
    return metrics
