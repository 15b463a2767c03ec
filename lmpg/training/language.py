"""The source of rollouts for language models: prompts → responses → scores → Rollout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmpg.data.order import prompts_for_step
from lmpg.data.prompts import Prompt, PromptSet
from lmpg.data.tokenizing import completion_text
from lmpg.functional.advantages import next_chosen
from lmpg.models.policy import CausalLMPolicy, Reference
from lmpg.rewards.scorer import Scorer, Scores
from lmpg.sampling.sampler import Sampler, Samples
from lmpg.training.language_metrics import (
    SHOWN,
    mean,
    reward_metrics,
    rollout_metrics,
    score_statistics,
    shown_samples,
)
from lmpg.training.loop import RunStopped
from lmpg.training.online import Collected
from lmpg.training.processes import Processes, gathered_rows
from lmpg.training.seeding import generator
from lmpg.training.settings import EvaluationSettings, UpdateSettings
from lmpg.training.stopwatch import Stopwatch
from lmpg.types import Algorithm, Evaluation, Rollout

# (prompts, completions) → figures that training never sees, such as a gold scorer's.
Judge = Callable[[list[Prompt], list[str]], dict[str, float]]


@dataclass(frozen=True)
class Scored:
    """Responses as text, with their scores."""

    prompts: list[Prompt]
    completions: list[str]
    scores: Scores


@dataclass
class LanguageSource:
    """Prompts, sampler, rewards and reference of one run; see `lmpg.training.online.Source`."""

    policy: CausalLMPolicy
    reference: Reference | None
    sampler: Sampler
    scorer: Scorer
    prompts: PromptSet
    tokenizer: Any
    algorithm: Algorithm
    update: UpdateSettings
    evaluation: EvaluationSettings
    max_error_share: float
    samples_every: int
    seed: int
    processes: Processes
    judge: Judge | None = None
    headline: str = "reward"
    lower_is_better: bool = False
    unit: str = "tokens"

    def collect(self, step: int) -> Collected:
        """Sample, score and record one rollout; RunStopped if too few responses have a score."""
        watch = Stopwatch()
        group_size = self.algorithm.group_size
        num_prompts = self.update.rollout_size // group_size
        order = prompts_for_step(len(self.prompts.train), step - 1, num_prompts, self.seed)
        prompts = [self.prompts.train[i] for i in self.processes.share(order)]
        uniforms_BT = self._uniforms(("sample", step), num_prompts, group_size)
        with watch("time/sample"):
            samples = self.sampler.sample([p.ids for p in prompts], group_size, uniforms_BT)
        with watch("time/score"):
            scored = self._score([p for p in prompts for _ in range(group_size)], samples)
        with watch("time/reference"):
            rollout = gathered_rows(self.processes, self._rollout(samples, scored))
        finished = self.processes.gather_list(samples.finished_B.tolist())
        scores = gathered_scores(self.processes, scored.scores)
        self._stop_on_errors(scores, step)
        metrics = {
            **rollout_metrics(rollout, group_size, finished),
            **reward_metrics(scores),
            **watch.seconds,
        }
        every = self.samples_every
        due = every and (step == 1 or step % every == 0)
        return Collected(rollout, metrics, self._shown(scored) if due else [])

    def evaluate(self) -> dict[str, float]:
        """Sampled on held-out prompts, with the same uniforms each time.

        reward, reward_std: mean and std of the score. kl: mean nats per response to the
        reference. distinct: share of distinct responses. length: mean tokens. And what the judge
        adds.
        """
        size, held_out = self.evaluation.size, self.prompts.held_out
        asked = [held_out[i % len(held_out)] for i in range(size)]
        uniforms_BT = self._uniforms(("evaluate",), size, 1)
        totals, completions, lengths, kls = [], [], [], []
        mine = self.processes.share(asked)
        for start in range(0, len(mine), self.update.rollout_size):
            prompts = mine[start : start + self.update.rollout_size]
            rows = uniforms_BT[start : start + len(prompts)]
            samples = self.sampler.sample([p.ids for p in prompts], 1, rows)
            scored = self._score(prompts, samples)
            totals += scored.scores.totals
            completions += scored.completions
            lengths += samples.inputs["response_lengths"].tolist()
            if self.reference is not None:
                kls += self._sequence_kl(samples).tolist()
        gather = self.processes.gather_list
        completions = gather(completions)
        found = {
            **score_statistics(gather(totals)),
            "distinct": len(set(completions)) / len(completions),
            "length": mean(gather(lengths)),
        }
        if self.reference is not None:
            found["kl"] = mean(gather(kls))
        return found | (self.judge(asked, completions) if self.judge else {})

    def state(self) -> dict[str, Any]:
        """Nothing: prompts and random numbers follow from the seed and the step."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""

    def _shown(self, scored: Scored) -> list[dict[str, Any]]:
        mine = shown_samples(scored.prompts, scored.completions, scored.scores.totals)
        return self.processes.gather_list(mine)[:SHOWN]

    def _uniforms(self, purpose: tuple[int | str, ...], prompts: int, group_size: int) -> Tensor:
        """This rank's rows of the global batch's uniforms, one per (response, token)."""
        shape = (prompts * group_size, self.sampler.max_new_tokens)
        drawn = torch.rand(shape, generator=generator(self.seed, *purpose))
        mine = self.processes.share_of(prompts)
        return drawn[mine.start * group_size : mine.stop * group_size]

    def _score(self, prompts: list[Prompt], samples: Samples) -> Scored:
        lengths = samples.inputs["response_lengths"].tolist()
        ids = [row[:n] for row, n in zip(samples.inputs["response_ids"].tolist(), lengths)]
        completions = [completion_text(self.tokenizer, p.ids, row) for p, row in zip(prompts, ids)]
        names = sorted({name for p in prompts for name in p.columns})
        columns = {name: [p.columns.get(name) for p in prompts] for name in names}
        scores = self.scorer.score([p.prompt for p in prompts], completions, ids, columns)
        return Scored(prompts, completions, scores)

    def _rollout(self, samples: Samples, scored: Scored) -> Rollout:
        """This rank's rows, on the CPU; the score sits on the last chosen token."""
        old = self._old(samples)
        mask_BT = samples.mask_BT.cpu()
        last_BT = mask_BT & (mask_BT.flip(1).cumsum(1).flip(1) == 1)
        totals = scored.scores.totals
        scores_B = torch.tensor([0.0 if x is None else x for x in totals])
        values_BT = None if old.values_BT is None else old.values_BT.cpu()
        needs_reference = "reference" in self.algorithm.needs
        return Rollout(
            inputs={name: x.cpu() for name, x in samples.inputs.items()},
            mask_BT=mask_BT,
            logprobs_BT=old.logprobs_BT.cpu(),
            rewards_BT=last_BT * scores_B[:, None],
            terminated_BT=last_BT,
            ended_BT=last_BT,
            scorable_B=torch.tensor([x is not None for x in totals], dtype=torch.bool),
            values_BT=values_BT,
            next_values_BT=None if values_BT is None else next_chosen(values_BT, mask_BT),
            ref_logprobs_BT=self._reference_logprobs(samples).cpu() if needs_reference else None,
        )

    def _old(self, samples: Samples) -> Evaluation:
        """Log-probs and values before the update: the sampler's own where they are exact (fp32),
        else those of a fresh forward, so that the first ratio is 1."""
        if not self.policy.bf16:
            return Evaluation(samples.logprobs_BT, samples.entropy_BT, samples.values_BT)
        with torch.no_grad():
            parts = [self.policy.evaluate(inputs) for inputs in self._microbatches(samples)]
        values = [x.values_BT for x in parts if x.values_BT is not None]
        return Evaluation(
            torch.cat([x.logprobs_BT for x in parts]),
            torch.cat([x.entropy_BT for x in parts]),
            torch.cat(values) if values else None,
        )

    def _reference_logprobs(self, samples: Samples) -> Tensor:
        if self.reference is None:
            raise ValueError(f"{type(self.algorithm).__name__} needs a reference, there is none")
        return torch.cat([self.reference.logprobs(x) for x in self._microbatches(samples)])

    def _sequence_kl(self, samples: Samples) -> Tensor:
        difference = self._old(samples).logprobs_BT - self._reference_logprobs(samples)
        return torch.where(samples.mask_BT, difference, 0).sum(1)

    def _microbatches(self, samples: Samples) -> list[dict[str, Tensor]]:
        size = self.update.microbatch_size
        count = len(samples.mask_BT)
        return [
            {name: x[start : start + size] for name, x in samples.inputs.items()}
            for start in range(0, count, size)
        ]

    def _stop_on_errors(self, scores: Scores, step: int) -> None:
        share = scores.errors / len(scores.totals)
        if share > self.max_error_share:
            said = "\n  ".join(scores.messages[:5])
            raise RunStopped(
                f"step {step}: {scores.errors} of {len(scores.totals)} responses could not be "
                f"scored, more than rewards.max_error_share = {self.max_error_share} allows. "
                f"Everything up to step {step - 1} is saved. Mend the reward, then go on with "
                f"--run.resume. The reward said:\n  {said}"
            )


def gathered_scores(processes: Processes, scores: Scores) -> Scores:
    """The scores of all ranks, on every rank."""
    gather = processes.gather_list
    return Scores(
        totals=gather(scores.totals),
        by_reward={name: gather(values) for name, values in scores.by_reward.items()},
        errors=sum(gather([scores.errors])),
        messages=gather(scores.messages),
    )
