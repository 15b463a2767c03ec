"""Held-out evaluation of a language model: samples completions, scores them, returns metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmpg.language.data.prompts import EvalMetric, Prompt
from lmpg.language.models.reference import Reference
from lmpg.language.rewards.results.scores import listed
from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.score_processing import mean, score_statistics
from lmpg.language.rollouts.scored_completions import (
    ScoredCompletions,
    powers_up_to,
    scored_completions,
)
from lmpg.runtime.progress import teller
from lmpg.settings.section import Diverged, UserError


@dataclass(frozen=True)
class Evaluator:
    """Samples `samples` completions of each of `size` held-out prompts, repeated where there are
    fewer, with the same random numbers each time and at most `rows` at once.

    scorer, reference and eval_metric each add their metrics, where they are given. pass_score: from
    which score on a completion passes, for pass@k. greedy: whether the likeliest completion is
    scored, too.
    """

    generator: Generator
    prompts: Sequence[Prompt]
    size: int
    rows: int
    scorer: Scorer | None = None
    reference: Reference | None = None
    eval_metric: EvalMetric | None = None
    samples: int = 1
    pass_score: float = 1.0
    greedy: bool = False

    def evaluate(self, max_error_share: float = 1.0) -> dict[str, float]:
        """Metrics of the present policy, the same on every rank.

        reward, reward_std: mean and std of the score. reward_errors: completions without one, if
        there are any. pass_at_k: mean chance that one of k passes, for k = 1, 2, 4 … `samples`,
        where there are several. greedy_reward: mean score of greedy completions, where asked for.
        distinct: share of distinct completions. length: mean tokens of the policy. turns: their
        mean, where there are environments. kl: mean nats per completion to the reference.
        rewards/NAME/mean: of each reward, where there are several. logged/NAME: mean of what reward
        functions logged. And what `eval_metric` adds. UserError if more completions than
        `max_error_share` have no score. Diverged if a token's probability is NaN.
        """
        prompts = [self.prompts[i % len(self.prompts)] for i in range(self.size)]
        parts = self.generator, prompts
        judges = self.scorer, self.reference
        found = scored_completions(
            *parts, self.samples, self.rows, *judges, progress=self._teller()
        )
        self._refuse(found, max_error_share)
        metrics = {} if self.scorer is None else score_statistics(found.scores)
        if errors := found.scores.count(None):
            metrics["reward_errors"] = float(errors)
        if self.samples > 1 and found.by_reward:
            for k in powers_up_to(self.samples):
                metrics[f"pass_at_{k}"] = float(found.pass_at(k, self.pass_score).nanmean())
        if self.greedy and found.by_reward:
            likeliest = scored_completions(*parts, 1, self.rows, self.scorer, greedy=True)
            metrics["greedy_reward"] = score_statistics(likeliest.scores)["reward"]
        metrics["distinct"] = found.distinct
        metrics["length"] = mean(found.lengths)
        if self.reference is not None:
            metrics["kl"] = mean(found.kls)
        if found.talks:
            metrics["turns"] = mean([len(talk.turns) for talk in found.talks])
        if len(found.by_reward) > 1:
            for name, scores in found.by_reward.items():
                metrics[f"rewards/{name}/mean"] = score_statistics(scores)["reward"]
        metrics |= found.logged_means
        gold = self.eval_metric(found.prompts, found.texts) if self.eval_metric else {}
        return metrics | gold

    def _teller(self) -> Callable[[int], None]:
        """Says how many prompts of this rank's share are answered."""
        what, count = "held-out prompts answered", len(self.prompts)
        if self.generator.environments is not None:
            what = "held-out episodes"
        elif self.size > count:
            what = f"answers to {count} held-out prompts"
        return teller(what, len(self.generator.processes.share_of(self.size)))

    def _refuse(self, found: ScoredCompletions, max_error_share: float) -> None:
        if found.ruined:
            raise Diverged(
                "the policy gives NaN for the next token: the last step has ruined its weights. "
                "Lower update.learning_rate or update.max_grad_norm"
            )
        errors, count = found.scores.count(None), len(found.texts)
        if errors > max_error_share * count:
            what = "environment or the reward" if found.talks else "reward"
            raise UserError(
                f"before training: {errors} of {count} held-out responses could not be scored, "
                f"more than rewards.max_error_share = {max_error_share} allows. Mend the {what} "
                f"and start again. What went wrong:{listed(found.messages)}"
            )
