"""The source of rollouts for language models: generate → score → process scores → assemble."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from lmpg.functional.masking import masked_mean
from lmpg.language.models.reference import Reference
from lmpg.language.rollouts.assembly import RolloutPart, assembled, rollout_metrics
from lmpg.language.rollouts.dynamic_sampling import DynamicSampling
from lmpg.language.rollouts.evaluation import Evaluator
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.score_processing import ScoreProcessing, reward_metrics
from lmpg.language.rollouts.scoring import GroupSampler, Sampled, ScoredGroups
from lmpg.language.rollouts.shown import num_shown, shown_rows, with_tokens
from lmpg.runtime.machine import Stopwatch
from lmpg.runtime.room import GAPS
from lmpg.settings.section import RunStopped
from lmpg.training.source import Collected
from lmpg.training.token_view import is_due, views_tokens
from lmpg.types import Algorithm, Rollout

logger = logging.getLogger(__name__)


@dataclass
class LanguageSource:
    """Rollouts of completions to prompts; see `lmpg.training.source.Source`.

    samples_every: iterations between rows for samples.jsonl; 0: none. total_steps: iterations of
    the run. token_view: whether some of these rows have the numbers of their tokens.
    refresh_every: iterations after which the reference becomes the policy; 0: never.
    processing: what is done to scores, with the statistics of all iterations so far. begun: the
    iteration of the last rollout that was asked for, 0 before any. warned: whether a rollout
    of which nothing counts was reported.
    """

    generator: Generator
    sampler: GroupSampler | DynamicSampling
    processing: ScoreProcessing
    reference: Reference | None
    algorithm: Algorithm
    evaluator: Evaluator
    samples_every: int
    total_steps: int = 0
    token_view: bool = False
    refresh_every: int = 0
    begun: int = 0
    warned: bool = False
    best_metric: str = "reward"
    lower_is_better: bool = False
    step_name: str = "tokens"
    advice: str = "look at rewards in samples.jsonl, or use model.precision fp32"

    def collect(self, iteration: int) -> Collected:
        """Generate and score completions, process their scores, assemble the rollout of all ranks.

        RunStopped if too many completions have no score.
        """
        self.begun, watch = iteration, Stopwatch()
        self._tell_rewards(iteration - 1)
        if self.refresh_every and iteration > 1 and (iteration - 1) % self.refresh_every == 0:
            assert self.reference is not None
            self.reference.refresh(self.generator.policy)
        with self.generator.sampler.reading_once():
            sampled = self.sampler.sample(iteration, self.processing, watch)
        self.processing = sampled.processing
        if self.generator.sampler.ahead and iteration < self.total_steps:
            self.sampler.ask_ahead(iteration + 1, self.processing.settings.chunks)
        with watch("time/reference"):
            part = self._assembled(sampled.groups, iteration)
        if not self.generator.policy.is_small:
            GAPS.give_back()  # what sampling has left; learning needs other sizes
        self._refuse_another_policys(part.rollout, iteration)
        self._warn_if_none_counts(part.rollout)
        metrics = self._metrics(part, sampled) | watch.seconds
        shown = part.shown[: num_shown(self.algorithm.group_size)]
        return Collected(part.rollout, metrics, shown)

    def evaluate(self) -> dict[str, float]:
        """Metrics of completions of held-out prompts; see `Evaluator`.

        UserError before the first rollout if too many of them have no score; later on the
        rollouts decide.
        """
        self._tell_rewards(self.begun)
        share = 1.0 if self.begun else self.processing.settings.max_error_share
        return self.evaluator.evaluate(share)

    def state(self) -> dict[str, Any]:
        """Statistics of scores, a refreshed reference, and what rewards and evaluations are told;
        prompts and random numbers follow from the seed and the step."""
        reference = {} if self.reference is None else self.reference.state()
        found = {"begun": self.begun} | ({"reference": reference} if reference else {})
        return self.processing.state() | found

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken."""
        self.processing = self.processing.with_state(state)
        self.begun = state.get("begun", 1)  # older checkpoints, of one iteration at least
        if self.reference is not None and "reference" in state:
            self.reference.load_state(state["reference"])

    def _assembled(self, sampled: list[ScoredGroups], iteration: int) -> RolloutPart:
        """The rollout of all ranks, on every rank, with processed scores."""
        parts = []
        for raw in sampled:
            processed = raw.processed(self.processing)
            part = assembled(
                raw,
                processed,
                self.generator,
                self.reference,
                self.algorithm,
                self._shown(raw, processed, iteration),
                truncated=self.processing.settings.truncated,
            )
            parts.append(part)
        return RolloutPart.joined(self.generator.processes.gather_list(parts))

    def _shown(
        self, raw: ScoredGroups, processed: ScoredGroups, iteration: int
    ) -> list[dict[str, Any]]:
        """The rows of samples.jsonl among these groups; [] in an iteration that writes none."""
        when = iteration, self.samples_every, self.total_steps
        if not is_due(*when):
            return []
        rows = shown_rows(raw, processed, self.processing.changes_scores)
        if not self.token_view or not views_tokens(*when):
            return rows
        reference = self.reference or self.evaluator.reference
        return with_tokens(rows, raw, self.generator, reference)

    def _tell_rewards(self, done: int) -> None:
        """Let reward functions know how many iterations are done."""
        if self.evaluator.scorer is not None:
            self.evaluator.scorer.done = done

    def _metrics(self, part: RolloutPart, sampled: Sampled) -> dict[str, float]:
        metrics = rollout_metrics(part, processed=self.processing.changes_scores)
        metrics |= reward_metrics(sampled.scores, sampled.greedy_errors)
        if self.algorithm.group_size > 1:
            has_spread = sampled.has_spread
            metrics["frac_reward_zero_std"] = has_spread.count(False) / len(has_spread)
        return metrics | sampled.metrics

    def _refuse_another_policys(self, rollout: Rollout, iteration: int) -> None:
        """RunStopped where a server has sampled with other weights than it was given."""
        theirs_BT, most = rollout.sampler_logprobs_BT, self.generator.sampler.max_deviation
        if theirs_BT is None or most is None:
            return
        apart = float(masked_mean((rollout.logprobs_BT - theirs_BT).abs(), rollout.mask_BT))
        if not apart <= most:
            raise RunStopped(
                f"step {iteration}: log-probs of what servers sampled deviate from the policy's by "
                f"{apart:.2g} nats per token, more than sampling.max_deviation = {most:g}: one has "
                "other weights than it was given, as after a start in between. Everything up to "
                f"step {iteration - 1} is saved; go on with --run.resume"
            )

    def _warn_if_none_counts(self, rollout: Rollout) -> None:
        """Once: an iteration that teaches nothing looks like any other in the log."""
        if rollout.learned_BT.any() or self.warned or not self.generator.processes.is_main:
            return
        self.warned = True
        logger.warning(
            "nothing can be learned from this step: no response counts: all are without a score "
            "or masked (rewards.truncated) (said once)"
        )
