"""Held-out evaluation of a language model: samples completions, scores them, returns metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmpg.language.data.prompts import EvalMetric, Prompt
from lmpg.language.models.reference import Reference
from lmpg.language.rewards.scorer import Scorer, listed
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.score_processing import mean, score_statistics
from lmpg.settings.section import Diverged, UserError


@dataclass(frozen=True)
class Evaluator:
    """Samples completions of `size` held-out prompts, repeated where there are fewer, with the same
    random numbers each time and at most `rows` at once.

    scorer, reference and eval_metric each add their metrics, where they are given.
    """

    generator: Generator
    prompts: Sequence[Prompt]
    size: int
    rows: int
    scorer: Scorer | None = None
    reference: Reference | None = None
    eval_metric: EvalMetric | None = None

    def evaluate(self, max_error_share: float = 1.0) -> dict[str, float]:
        """Metrics of the present policy, the same on every rank.

        reward, reward_std: mean and std of the score. reward_errors: completions without one, if
        there are any. distinct: share of distinct completions. length: mean tokens. kl: mean nats
        per completion to the reference. And what `eval_metric` adds. UserError if more completions
        than `max_error_share` have no score. Diverged if a token's probability is NaN.
        """
        prompts = [self.prompts[i % len(self.prompts)] for i in range(self.size)]
        names = ("texts", "lengths", "scores", "messages", "kls", "ruined")
        ranks = self.generator.processes.gather_list([self._columns(prompts)])
        texts, lengths, scores, messages, kls, ruined = (
            [x for columns in ranks for x in columns[name]] for name in names
        )
        if any(ruined):
            raise Diverged(
                "the policy gives NaN for the next token: the last step has ruined its weights. "
                "Lower update.learning_rate or update.max_grad_norm"
            )
        errors = scores.count(None)
        if errors > max_error_share * self.size:
            raise UserError(
                f"before training: {errors} of {self.size} held-out responses could not be scored, "
                f"more than rewards.max_error_share = {max_error_share} allows. Mend the reward "
                f"and start again. The reward said:{listed(messages)}"
            )
        metrics = {} if self.scorer is None else score_statistics(scores)
        if errors:
            metrics["reward_errors"] = float(errors)
        metrics["distinct"] = len(set(texts)) / len(texts)
        metrics["length"] = mean(lengths)
        if self.reference is not None:
            metrics["kl"] = mean(kls)
        return metrics | (self.eval_metric(prompts, texts) if self.eval_metric else {})

    def _columns(self, prompts: list[Prompt]) -> dict[str, list[Any]]:
        """Texts, lengths, scores, error messages and KLs of this rank's share of the prompts."""
        uniforms_BT = self.generator.uniforms(("evaluate",), len(prompts), 1)
        mine = self.generator.processes.share(prompts)
        found: dict[str, list[Any]] = defaultdict(list)
        for start in range(0, len(mine), self.rows):
            rows = slice(start, start + self.rows)
            completions = self.generator.generate(mine[rows], 1, uniforms_BT[rows])
            found["texts"] += completions.texts
            found["lengths"] += map(len, completions.ids)
            found["ruined"].append(bool(completions.samples.logprobs_BT.isnan().any()))
            if self.scorer is not None:
                scores = completions.submit_to(self.scorer).result()
                found["scores"] += scores.totals
                found["messages"] += scores.messages
            if self.reference is not None:
                kl_B = self.generator.sequence_kl(self.reference, completions.samples)
                found["kls"] += kl_B.tolist()
        return found
