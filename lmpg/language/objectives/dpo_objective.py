"""Direct preference optimisation (arXiv 2305.18290) and its variants: no reward model, no samples.

How much more likely an answer is than under the reference stands for its reward; the chosen
answer's is to be higher than the rejected one's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmpg.algorithms.dpo import DPO
from lmpg.functional.preference_losses import (
    won,
)
from lmpg.language.data.policy_pairs import Comparison
from lmpg.language.data.texts import Text
from lmpg.language.objectives.preference_objective import JudgedObjective
from lmpg.language.objectives.text_logprobs import num_learned, text_logprobs
from lmpg.language.rollouts.metrics import mean


class Comparing(JudgedObjective[Comparison, DPO]):
    """The method's loss, meant over the pairs of a minibatch."""

    def texts(self, example: Comparison) -> tuple[Text, Text]:
        """Chosen and rejected."""
        return example.chosen, example.rejected

    @property
    def needs_reference(self) -> bool:
        """Not where log-probs are compared as they are."""
        return self.method.reference

    def figures(self, examples: list[Comparison]) -> dict[str, Tensor]:
        """Loss, rewards (β Δ) and log-probs of each pair."""
        texts = [pair.chosen for pair in examples] + [pair.rejected for pair in examples]
        logprobs = text_logprobs(self.module, texts)
        known = [pair.reference[side] for side in (0, 1) for pair in examples]
        reference = torch.tensor(known, device=logprobs.device)
        num_tokens = num_learned(texts).to(logprobs.device)
        chosen, rejected = self.method.log_ratio(logprobs, reference, num_tokens).chunk(2)
        better, worse = (self.method.beta * x.detach() for x in (chosen, rejected))
        likely, unlikely = logprobs.detach().chunk(2)
        return {
            "loss": self.method.pair_loss(chosen - rejected),
            "rewards/chosen": better,
            "rewards/rejected": worse,
            "rewards/margin": better - worse,
            "rewards/accuracy": won(better, worse),
            "logps/chosen": likely,
            "logps/rejected": unlikely,
        }

    def held_out_figures(self) -> dict[str, float]:
        """loss, and of the rewards the mean margin and the share of pairs won (pair_accuracy)."""
        found = self.gathered(self.held_out)
        names = {"loss": "loss", "margin": "rewards/margin", "pair_accuracy": "rewards/accuracy"}
        return {name: mean(found[figure]) for name, figure in names.items()}
