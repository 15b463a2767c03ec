"""The source of rollouts for language models: prompts → responses → scores → Rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmpg.data.order import prompts_for_step
from lmpg.data.prompts import Prompt
from lmpg.functional.advantages import next_chosen
from lmpg.models.policy import Reference
from lmpg.rewards.scorer import Scorer, Scores
from lmpg.sampling.sampler import Samples
from lmpg.training.evaluation import HeldOut
from lmpg.training.language_metrics import SHOWN, reward_metrics, rollout_metrics, shown_samples
from lmpg.training.loop import RunStopped
from lmpg.training.online import Collected
from lmpg.training.overlap import scored_responses
from lmpg.training.processes import Processes, gathered_rows
from lmpg.training.responding import Responder, Responses
from lmpg.training.stopwatch import Stopwatch
from lmpg.types import Algorithm, Rollout


@dataclass
class LanguageSource:
    """Prompts, sampler, rewards and reference of one run; see `lmpg.training.online.Source`."""

    responder: Responder
    reference: Reference | None
    scorer: Scorer
    prompts: list[Prompt]
    held_out: HeldOut
    algorithm: Algorithm
    rollout_size: int
    max_error_share: float
    samples_every: int
    chunks: int = 1
    headline: str = "reward"
    lower_is_better: bool = False
    unit: str = "tokens"

    def collect(self, step: int) -> Collected:
        """Sample, score and record one rollout; RunStopped if too few responses have a score."""
        watch = Stopwatch()
        group_size = self.algorithm.group_size
        responses, scores = self._responses(step, watch)
        with watch("time/reference"):
            rollout = gathered_rows(self.processes, self._rollout(responses.samples, scores))
        finished = self.processes.gather_list(responses.samples.finished_B.tolist())
        shown = shown_samples(responses.prompts, responses.completions, scores.totals)
        scores = gathered_scores(self.processes, scores)
        self._stop_on_errors(scores, step)
        metrics = {
            **rollout_metrics(rollout, group_size, finished),
            **reward_metrics(scores),
            **watch.seconds,
        }
        every = self.samples_every
        due = every and (step == 1 or step % every == 0)
        return Collected(rollout, metrics, self.processes.gather_list(shown)[:SHOWN] if due else [])

    def evaluate(self) -> dict[str, float]:
        """Figures of responses to held-out prompts; see `lmpg.training.evaluation`."""
        return self.held_out.evaluate()

    def state(self) -> dict[str, Any]:
        """Nothing: prompts and random numbers follow from the seed and the step."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""

    @property
    def processes(self) -> Processes:
        """Those that share the sampling."""
        return self.responder.processes

    def _responses(self, step: int, watch: Stopwatch) -> tuple[Responses, Scores]:
        """This rank's responses to the prompts of iteration `step`, with their scores."""
        group_size = self.algorithm.group_size
        num_prompts = self.rollout_size // group_size
        order = prompts_for_step(len(self.prompts), step - 1, num_prompts, self.responder.seed)
        prompts = [self.prompts[i] for i in self.processes.share(order)]
        uniforms_BT = self.responder.uniforms(("sample", step), num_prompts, group_size)
        return scored_responses(
            self.responder, self.scorer, prompts, group_size, uniforms_BT, self.chunks, watch
        )

    def _rollout(self, samples: Samples, scores: Scores) -> Rollout:
        """This rank's rows, on the CPU; the score sits on the last chosen token."""
        old = self.responder.recorded(samples)
        mask_BT = samples.mask_BT.cpu()
        last_BT = mask_BT & (mask_BT.flip(1).cumsum(1).flip(1) == 1)
        totals = scores.totals
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

    def _reference_logprobs(self, samples: Samples) -> Tensor:
        if self.reference is None:
            raise ValueError(f"{type(self.algorithm).__name__} needs a reference, there is none")
        return self.responder.reference_logprobs(self.reference, samples)

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
        steps=gather(scores.steps),
    )
