"""Direct preference optimisation (arXiv 2305.18290) and its variants: no reward model, no samples.

How much more likely an answer is than under the reference stands for its reward; the chosen
answer's is to be higher than the rejected one's.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lmpg.data.comparisons import Comparison
from lmpg.data.texts import Text
from lmpg.functional.preference import (
    conservative_loss,
    hinge_loss,
    ipo_loss,
    robust_loss,
    sigmoid_loss,
    won,
)
from lmpg.sections import Section
from lmpg.training.judged import JudgedObjective
from lmpg.training.language_metrics import mean
from lmpg.training.learned_steps import num_learned, text_logprobs


class DPO(Section):
    """What an answer's log-probs are compared with, and how a wrong order is punished."""

    loss: Literal["sigmoid", "ipo", "hinge", "conservative", "robust"] = "sigmoid"
    """Of the difference between chosen and rejected answer; conservative and robust take
    `label_smoothing` for the share of wrong labels."""
    beta: float = Field(0.1, gt=0)
    """β: how closely the policy stays at the reference; ipo aims for a difference of 1/(2β)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """ε: share of pairs that are labelled the wrong way round."""
    per_token: bool = False
    """Mean log-probs of an answer's tokens, not their sum; ipo always takes the mean."""
    reference: bool = True
    """Compare with the model that training starts from; SimPO does without."""
    gamma: float = Field(0.0, ge=0)
    """γ: by how much the chosen answer's reward is to exceed the other's, as in SimPO."""

    @model_validator(mode="after")
    def _no_idle_settings(self) -> DPO:
        smooth = self.loss in ("conservative", "robust")
        if smooth != (self.label_smoothing > 0):
            fix = "Set it above 0" if smooth else "Set algorithm.loss to conservative or robust"
            raise ValueError(
                f"algorithm.label_smoothing = {self.label_smoothing} has no effect with "
                f"algorithm.loss = {self.loss}. {fix}"
            )
        if self.loss == "ipo" and self.gamma:
            raise ValueError(
                f"algorithm.gamma = {self.gamma}, but ipo has its margin in algorithm.beta. "
                "Set algorithm.gamma to 0"
            )
        return self

    def log_ratio(self, logprobs: Tensor, reference: Tensor, num_tokens: Tensor) -> Tensor:
        """Δ = log π − log π_ref of an answer, summed over its tokens or their mean."""
        ratio = logprobs - reference
        return ratio / num_tokens if self.per_token or self.loss == "ipo" else ratio

    def pair_loss(self, difference: Tensor) -> Tensor:
        """The loss of Δ_chosen − Δ_rejected."""
        z = self.beta * difference - self.gamma
        if self.loss == "ipo":
            return ipo_loss(difference, beta=self.beta)
        if self.loss == "hinge":
            return hinge_loss(z)
        if self.loss == "conservative":
            return conservative_loss(z, smoothing=self.label_smoothing)
        if self.loss == "robust":
            return robust_loss(z, smoothing=self.label_smoothing)
        return sigmoid_loss(z)


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
