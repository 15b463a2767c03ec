"""DPO and its variants."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from lmpg.functional.preference_losses import (
    conservative_loss,
    hinge_loss,
    ipo_loss,
    robust_loss,
    sigmoid_loss,
)
from lmpg.settings.section import Section


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
    def _refuse_settings_without_effect(self) -> DPO:
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
