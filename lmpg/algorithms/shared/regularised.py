"""What every online algorithm can add: an entropy bonus, a KL penalty in the reward or the loss."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from lmpg.functional.kl import Estimator, penalised_rewards, reverse_kl_loss
from lmpg.functional.masking import Reduction
from lmpg.settings.section import Section
from lmpg.types import Evaluation, Minibatch, Rollout


class Regularised(Section):
    """Fields that all algorithms share, and what they do to rewards and loss."""

    per_step: ClassVar[bool] = True
    reduction: Reduction = "token_mean"
    """token_mean: every step weighs the same; sequence_mean: every response does; fixed_length:
    the sum over a response's steps divided by sampling.max_new_tokens."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    kl_coef: float = Field(0.05, ge=0)
    """β: weight of the KL to the reference; 0 leaves it out."""
    kl_in: Literal["reward", "loss"] = "reward"
    """reward: each step's reward is reduced by β (log π − log π_ref); loss: a term of its own."""
    kl_estimator: Estimator = "k3"
    """In the loss k3 (times the ratio, as its gradient requires) or k2; in the reward always k1."""
    kl_target: float | None = Field(None, gt=0)
    """Nats per response that an adaptive β is steered to; none keeps β."""
    kl_horizon: float = Field(200.0, gt=0)
    """Responses over which an adaptive β changes by 20 % at most."""

    @model_validator(mode="after")
    def _require_kl_where_it_has_an_effect(self) -> Regularised:
        if self.kl_coef and self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "algorithm.kl_estimator = k1 with algorithm.kl_in = loss: its expected gradient "
                "is zero there, so it holds nothing back. Set algorithm.kl_estimator to k3 or k2"
            )
        return self

    @model_validator(mode="after")
    def _refuse_targets_without_coefficients(self) -> Regularised:
        for target, coef in (("kl_target", "kl_coef"), ("penalty_target", "penalty_coef")):
            wanted = getattr(self, target, None)
            if wanted and not getattr(self, coef):
                raise ValueError(
                    f"algorithm.{target} = {wanted} with algorithm.{coef} = 0, which no "
                    f"controller can change. Set an algorithm.{coef} above 0 to start from"
                )
        high = getattr(self, "clip_high", None)
        if high is not None and getattr(self, "clip", None) is None:
            raise ValueError(
                f"algorithm.clip_high = {high} with algorithm.clip = none, which does not clip. "
                "Set algorithm.clip too, or leave algorithm.clip_high out"
            )
        return self

    @property
    def needs(self) -> frozenset[str]:
        """A reference where there is a KL penalty; ratios too if it is in the loss, and old
        log-probs if it is in the reward."""
        if not self.kl_coef:
            return frozenset()
        return frozenset({"reference", "ratios" if self.kl_in == "loss" else "old_logprobs"})

    def penalised_rewards(self, rollout: Rollout) -> Tensor:
        """The rewards [B, T], less the KL penalty where it is in the reward."""
        coef = self.kl_coef if self.kl_in == "reward" else 0.0
        old_BT, ref_BT = rollout.logprobs_BT, rollout.ref_logprobs_BT
        return penalised_rewards(rollout.rewards_BT, old_BT, ref_BT, rollout.mask_BT, coef)

    def regularisers(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """The term `kl` where it is in the loss, and `entropy` where there is a bonus."""
        terms = {}
        if self.kl_coef and self.kl_in == "loss":
            old_BT, ref_BT = batch.old_logprobs_BT, batch.ref_logprobs_BT
            kl_BT = reverse_kl_loss(new.logprobs_BT, old_BT, ref_BT, self.kl_estimator)
            terms["kl"] = self.kl_coef * kl_BT
        if self.entropy_coef:
            terms["entropy"] = -self.entropy_coef * new.entropy_BT
        return terms
