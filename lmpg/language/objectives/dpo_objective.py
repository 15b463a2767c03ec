"""What DPO asks of the model: the log-probs of both answers of each pair."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmpg.algorithms.fixed_data.dpo import DPO
from lmpg.functional.preference_losses import pair_accuracy
from lmpg.language.data.policy_pairs import PreferencePair
from lmpg.language.data.texts import Text
from lmpg.language.objectives.preference_objective import PreferenceObjective
from lmpg.language.objectives.shown_examples import pair_row, prompt_and_answer
from lmpg.language.objectives.text_logprobs import text_logprobs


class DPOObjective(PreferenceObjective[PreferencePair, DPO]):
    """The chosen answer of each pair is to gain more on the reference than the rejected one."""

    def rewards(self, examples: list[PreferencePair]) -> Tensor:
        """β Δ of both answers of each pair."""
        terms, _ = self._terms(examples)
        return torch.cat([terms["rewards/chosen"], terms["rewards/rejected"]])

    def shown(self, examples: list[PreferencePair]) -> list[dict[str, Any]]:
        """Both answers of each pair with their rewards."""
        rows = []
        for pair, *rewards in zip(examples, *self.rewards(examples).view(2, -1).tolist()):
            prompt, chosen = prompt_and_answer(self.tokenizer, pair.chosen)
            _, rejected = prompt_and_answer(self.tokenizer, pair.rejected)
            rows.append(pair_row(prompt, (chosen, rejected), (rewards[0], rewards[1])))
        return rows

    def answers(self, example: PreferencePair) -> tuple[Text, ...]:
        """Both."""
        return example.texts

    def metrics(self, examples: list[PreferencePair]) -> dict[str, Tensor]:
        """Loss, rewards (β Δ) and log-probs of each pair."""
        terms, logprobs_2N = self._terms(examples)
        chosen_N, rejected_N = terms["rewards/chosen"], terms["rewards/rejected"]
        terms |= self.mean_reward_metric(chosen_N)
        return terms | {
            "rewards/margin": chosen_N - rejected_N,
            "rewards/accuracy": pair_accuracy(chosen_N, rejected_N),
            "logps/chosen": logprobs_2N[0],
            "logps/rejected": logprobs_2N[1],
        }

    def held_out_metrics(self) -> dict[str, float]:
        """`loss`, the mean margin of the rewards, and the share of pairs in the right order
        (pair_accuracy)."""
        found = self.gathered(self.held_out)
        names = {"loss": "loss", "margin": "rewards/margin", "pair_accuracy": "rewards/accuracy"}
        count = len(self.held_out)
        return {name: sum(found[metric]) / count for name, metric in names.items()}

    def _terms(self, examples: list[PreferencePair]) -> tuple[dict[str, Tensor], Tensor]:
        """The algorithm's terms, and log π of both answers without gradient."""
        texts = [pair.texts[side] for side in (0, 1) for pair in examples]
        known = [pair.ref_logprobs[side] for side in (0, 1) for pair in examples]
        lengths = [float(sum(text.loss_mask)) for text in texts]
        logprobs_2N = text_logprobs(self.module, texts).view(2, -1)
        known_2N, lengths_2N = (logprobs_2N.new_tensor(x).view(2, -1) for x in (known, lengths))
        terms = self.algorithm.loss_terms(logprobs_2N, known_2N, lengths_2N, self.mean_reward)
        return terms, logprobs_2N.detach()
