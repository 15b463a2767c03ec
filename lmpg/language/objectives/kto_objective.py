"""KTO (arXiv 2402.01306): answers that are good or bad by themselves, without a partner."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lmpg.algorithms.kto import KTO
from lmpg.functional.preference_losses import all_comparisons, kto_loss, won
from lmpg.language.data.policy_pairs import Answer
from lmpg.language.data.texts import Text
from lmpg.language.objectives.preference_objective import JudgedObjective, in_parts
from lmpg.language.objectives.text_logprobs import text_logprobs
from lmpg.language.rollouts.metrics import mean


class Judging(JudgedObjective[Answer, KTO]):
    """The method's loss, meant over the answers of a minibatch.

    What is a gain is measured from the drift: how far the policy has moved from the reference on
    the prompts with answers to others, a number of the whole minibatch on all ranks.
    """

    needs_reference = True

    def __init__(self, *args: Any, **options: Any) -> None:
        self._drift = torch.zeros(())
        self._shares = (1.0, 1.0)
        super().__init__(*args, **options)

    def texts(self, example: Answer) -> tuple[Text, Text]:
        """The prompt with its own answer, and with one to another prompt."""
        return example.text, example.mismatched

    def survey(self, batch: list[Answer], parts: list[list[Answer]]) -> None:
        """Measure the drift on the minibatch, before any of it is learned."""
        share = sum(answer.desirable for answer in batch) / len(batch)
        self._shares = (share or math.nan, 1 - share or math.nan)
        self._drift = self._measured_drift(parts, len(batch))

    def figures(self, examples: list[Answer]) -> dict[str, Tensor]:
        """Loss, reward (β Δ) and log-prob of each answer; figures of desirable and undesirable
        answers are scaled so that the mean over the minibatch is that over their own kind."""
        logprobs = text_logprobs(self.module, [answer.text for answer in examples])
        device = logprobs.device
        reference = torch.tensor([answer.reference[0] for answer in examples], device=device)
        good = torch.tensor([answer.desirable for answer in examples], device=device)
        ratio = logprobs - reference
        method = self.method
        weights = (method.desirable_weight, method.undesirable_weight)
        rewards, seen = method.beta * ratio.detach(), logprobs.detach()
        desirable, undesirable = good / self._shares[0], ~good / self._shares[1]
        return {
            "loss": kto_loss(ratio, good, self._drift, beta=method.beta, weights=weights),
            "rewards/chosen": rewards * desirable,
            "rewards/rejected": rewards * undesirable,
            "rewards/margin": rewards * (desirable - undesirable),
            "logps/chosen": seen * desirable,
            "logps/rejected": seen * undesirable,
            "drift": self._drift.expand_as(ratio),
        }

    def held_out_figures(self) -> dict[str, float]:
        """loss, with the drift of all of them; margin: mean reward of the desirable answers less
        that of the others; pair_accuracy: share of all pairs of both kinds in the right order."""
        answers = self.held_out
        self.survey(answers, in_parts(self.processes.share(answers), self.rows))
        found = self.gathered(answers)
        good = torch.tensor([answer.desirable for answer in answers])
        rewards = torch.tensor(found["rewards/chosen"]) * self._shares[0]
        rewards = torch.where(
            good, rewards, torch.tensor(found["rewards/rejected"]) * self._shares[1]
        )
        higher, lower = all_comparisons(rewards, good.float())
        return {
            "loss": mean(found["loss"]),
            "margin": mean(found["rewards/margin"]),
            "pair_accuracy": mean(won(higher, lower).tolist()),
        }

    @torch.no_grad()
    def _measured_drift(self, parts: list[list[Answer]], count: int) -> Tensor:
        """max(0, mean of log π − log π_ref on mismatched pairs), over the parts of all ranks."""
        total = torch.zeros((), dtype=torch.float64)
        for part in parts:
            if part:
                logprobs = text_logprobs(self.module, [answer.mismatched for answer in part])
                known = torch.tensor([answer.reference[1] for answer in part])
                total += (logprobs.cpu() - known).double().sum()
        summed = self.processes.sum(total.to(self.module.device))
        return (summed / count).clamp(min=0).float()
