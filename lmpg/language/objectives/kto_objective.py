"""What KTO asks of the model: the log-probs of labelled completions, and the KL baseline."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lmpg.algorithms.fixed_data.kto import KTO
from lmpg.functional.preference_losses import pair_accuracy, pairs_by_label
from lmpg.language.data.policy_pairs import LabelledCompletion
from lmpg.language.data.texts import Text
from lmpg.language.objectives.preference_objective import PreferenceObjective, in_parts
from lmpg.language.objectives.shown_examples import answer_row, prompt_and_answer
from lmpg.language.objectives.text_logprobs import text_logprobs
from lmpg.runtime.machine import widest


class KTOObjective(PreferenceObjective[LabelledCompletion, KTO]):
    """Desirable completions are to gain on the reference, the others to lose.

    Gains are measured from a number of the whole minibatch on all ranks, KTO's KL baseline or BCO's
    mean reward. `prepare` measures it, and the share of either kind, before losses are computed.
    """

    _kl_baseline = torch.zeros(())
    _shares = (1.0, 1.0)

    def prepare(
        self, batch: list[LabelledCompletion], parts: list[list[LabelledCompletion]]
    ) -> None:
        """Measure what the losses compare with, before any of the minibatch is learned."""
        super().prepare(batch, parts)
        self._measure(batch, parts)

    def _measure(
        self, batch: list[LabelledCompletion], parts: list[list[LabelledCompletion]]
    ) -> None:
        """Measure the share of either kind and the KL baseline of a minibatch."""
        share = sum(example.desirable for example in batch) / len(batch)
        self._shares = (share or math.nan, 1 - share or math.nan)
        if self.algorithm.compares_with_drift:
            self._kl_baseline = self._measured_baseline(parts, len(batch))

    def rewards(self, examples: list[LabelledCompletion]) -> Tensor:
        """β Δ of each completion."""
        return self._terms(examples)[0]["rewards"]

    def shown(self, examples: list[LabelledCompletion]) -> list[dict[str, Any]]:
        """Each completion with its label and its reward."""
        rows = []
        for example, reward in zip(examples, self.rewards(examples).tolist()):
            label = "desirable" if example.desirable else "undesirable"
            texts = prompt_and_answer(self.tokenizer, example.text)
            rows.append(answer_row(*texts, label, reward))
        return rows

    def answers(self, example: LabelledCompletion) -> tuple[Text, ...]:
        """The completion, not the mismatched one."""
        return (example.text,)

    def metrics(self, examples: list[LabelledCompletion]) -> dict[str, Tensor]:
        """Loss, reward (β Δ) and log-prob of each completion; those of desirable and undesirable
        ones are scaled so that the mean over the minibatch is the mean over their own kind."""
        terms, logps_N, desirable_N = self._terms(examples)
        rewards_N = terms["rewards"]
        good_N, poor_N = desirable_N / self._shares[0], ~desirable_N / self._shares[1]
        return {
            "loss": terms["loss"],
            "rewards/chosen": rewards_N * good_N,
            "rewards/rejected": rewards_N * poor_N,
            "rewards/margin": rewards_N * (good_N - poor_N),
            "logps/chosen": logps_N * good_N,
            "logps/rejected": logps_N * poor_N,
            **self._measured_from(rewards_N),
        }

    def _terms(
        self, examples: list[LabelledCompletion]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The algorithm's terms, log π of the completions without gradient, and which of them are
        desirable."""
        logprobs_N = text_logprobs(self.module, [example.text for example in examples])
        ref_logprobs_N = logprobs_N.new_tensor([example.ref_logprobs[0] for example in examples])
        desirable = [example.desirable for example in examples]
        desirable_N = torch.tensor(desirable, device=logprobs_N.device)
        drift, mean = self.algorithm.compares_with_drift, self.mean_reward
        start = self._kl_baseline if drift else logprobs_N.new_tensor(mean)
        terms = self.algorithm.loss_terms(logprobs_N, ref_logprobs_N, desirable_N, start)
        return terms, logprobs_N.detach(), desirable_N

    def _measured_from(self, rewards_N: Tensor) -> dict[str, Tensor]:
        """What gains are measured from, under its name, for each completion."""
        if self.algorithm.compares_with_drift:
            return {"drift": self._kl_baseline.expand_as(rewards_N)}
        return self.mean_reward_metric(rewards_N)

    def held_out_metrics(self) -> dict[str, float]:
        """loss, with the KL baseline of all of them; margin: mean reward of the desirable ones less
        that of the others; pair_accuracy: share of all pairs of both kinds in the right order."""
        held_out = self.held_out
        self._measure(held_out, in_parts(self.processes.share(held_out), self.rows))
        found = self.gathered(held_out)
        desirable = torch.tensor([example.desirable for example in held_out])
        good, poor = (
            torch.tensor(found[name]) * share
            for name, share in zip(("rewards/chosen", "rewards/rejected"), self._shares)
        )
        higher, lower = pairs_by_label(torch.where(desirable, good, poor), desirable.float())
        return {
            "loss": sum(found["loss"]) / len(held_out),
            "margin": sum(found["rewards/margin"]) / len(held_out),
            "pair_accuracy": float(pair_accuracy(higher, lower).double().mean()),
        }

    @torch.no_grad()
    def _measured_baseline(self, parts: list[list[LabelledCompletion]], count: int) -> Tensor:
        """max(0, mean of log π − log π_ref on mismatched pairs), over the parts of all ranks."""
        total = torch.zeros((), dtype=torch.float64)
        for part in parts:
            if part:
                logprobs = text_logprobs(self.module, [example.mismatched for example in part])
                known = torch.tensor([example.ref_logprobs[1] for example in part])
                total += (logprobs.cpu() - known).double().sum()
        device = self.module.device
        summed = self.processes.sum(total.to(device, widest(device)))
        return (summed / count).clamp(min=0).float()
