"""A weighted sum of losses of pairs, and which settings go together in it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from lmpg.functional.preference_losses import PairLoss
from lmpg.settings.section import Section

SMOOTHED = {"conservative", "robust"}
WITH_MARGIN = {"sigmoid", "hinge", *SMOOTHED}
WITHOUT_REFERENCE = {"odds_ratio", "sft"}


class PairLosses(Section):
    """Which losses of a pair are added up, with which weights, against which reference."""

    loss: tuple[PairLoss, ...] = ("sigmoid",)
    """Of a pair of answers; several are added up. conservative and robust take `label_smoothing`
    for the share of wrong labels; sft is −log π per token of the chosen answer."""
    loss_weights: tuple[float, ...] = ()
    """Weight of each `loss`, in the same order; none: 1 each."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """ε: share of pairs that are labelled the wrong way round."""
    reference: bool = True
    """Compare with the model that training starts from; SimPO, CPO and ORPO do without."""
    beta: float = Field(0.1, gt=0)
    """β: how closely the policy stays at the reference; ipo aims for a difference of 1/(2β),
    sppo_hard for that above the reference and below it."""
    gamma: float = Field(0.0, ge=0)
    """γ: by how much the chosen answer's reward is to exceed the other's, as in SimPO."""

    @field_validator("loss", "loss_weights", mode="before")
    @classmethod
    def _take_one_for_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | int | float) else value

    @model_validator(mode="after")
    def _refuse_weights_without_a_loss(self) -> PairLosses:
        named, weights = ", ".join(self.loss), self.loss_weights
        if not self.loss:
            raise ValueError(
                "algorithm.loss is empty: expected at least one loss, such as sigmoid, which is DPO"
            )
        if len(set(self.loss)) < len(self.loss):
            raise ValueError(
                f"algorithm.loss = {named}: one stands there twice. Give it once, with its weight "
                "in algorithm.loss_weights"
            )
        if weights and len(weights) != len(self.loss):
            raise ValueError(
                f"algorithm.loss_weights = {', '.join(map(str, weights))}: {len(weights)} for the "
                f"{len(self.loss)} of algorithm.loss = {named}. Give one weight for each loss"
            )
        if not all(weight > 0 for weight in weights):
            raise ValueError(
                f"algorithm.loss_weights = {', '.join(map(str, weights))}: expected numbers above "
                "0. Leave out the losses that are not to count"
            )
        return self

    @model_validator(mode="after")
    def _refuse_settings_without_effect(self) -> PairLosses:
        named, losses = ", ".join(self.loss), set(self.loss)
        if bool(losses & SMOOTHED) != (self.label_smoothing > 0):
            fix = (
                "Set it above 0" if losses & SMOOTHED else "Add conservative or robust to the loss"
            )
            raise ValueError(
                f"algorithm.label_smoothing = {self.label_smoothing} has no effect with "
                f"algorithm.loss = {named}. {fix}"
            )
        if self.gamma and not losses & WITH_MARGIN:
            where = ": ipo has its margin in algorithm.beta" if "ipo" in losses else ""
            raise ValueError(
                f"algorithm.gamma = {self.gamma} has no effect with algorithm.loss = {named}"
                f"{where}. Set algorithm.gamma to 0"
            )
        beta = type(self).model_fields["beta"].default
        if losses <= WITHOUT_REFERENCE and self.beta != beta:
            raise ValueError(
                f"algorithm.beta = {self.beta} has no effect with algorithm.loss = {named}: how "
                "much each counts (λ of ORPO) is in algorithm.loss_weights. Leave algorithm.beta "
                f"at {beta}"
            )
        if self.reference and losses <= WITHOUT_REFERENCE:
            raise ValueError(
                f"algorithm.reference = True has no effect with algorithm.loss = {named}. "
                "Set algorithm.reference to False"
            )
        return self

    @property
    def weighted_losses(self) -> dict[PairLoss, float]:
        """Each loss with its weight."""
        return dict(zip(self.loss, self.loss_weights or [1.0] * len(self.loss)))

    @property
    def compares_with_mean_reward(self) -> bool:
        """Whether `loss_terms` needs the mean reward of the answers learned so far (BCO's δ)."""
        return "bco_pair" in self.loss
