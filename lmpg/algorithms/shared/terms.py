"""Entropy bonus, KL penalty and critic: their settings, and what they do to rewards and loss."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from lmpg.functional.kl import Estimator, penalised_rewards, reverse_kl_loss
from lmpg.functional.losses import clipped_squared_error, squared_error
from lmpg.functional.masking import WHITEN_EPS, Reduction, whitened
from lmpg.settings.section import Section
from lmpg.types import Credit, Evaluation, Minibatch, Rollout


class Regularised(Section):
    """Fields that all algorithms share, and what they do to rewards and loss."""

    per_step: ClassVar[bool] = True
    reduction: Reduction = "token_mean"
    """token_mean: every step weighs the same; sequence_mean: every response does, so steps of long
    ones weigh less, which is another gradient where lengths differ; fixed_length: the sum over a
    response's steps divided by sampling.max_new_tokens."""
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


class Critic(Section):
    """Fields of methods whose baseline is learned."""

    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per step."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's λ: 0 trusts the critic, 1 the sampled return."""
    value_coef: float = Field(0.1, ge=0)
    """Weight of the value loss ½(V − R)². On a shared trunk a large one drowns the policy."""
    value_clip: float | None = Field(0.2, gt=0)
    """Range the value may move in one update; none does not clip."""
    whiten: bool = True
    """Standardise advantages over the whole rollout."""

    def gae_credit(self, rollout: Rollout, rewards_BT: Tensor) -> Credit:
        """Per-step advantages by GAE; returns from the advantages before whitening."""
        advantages_BT = rollout.gae(rewards_BT, self.gamma, self.lam)
        returns_BT = advantages_BT + rollout.values_BT
        if self.whiten:
            advantages_BT = whitened(advantages_BT, rollout.counted_BT, WHITEN_EPS)
        return Credit(advantages_BT, rewards_BT, returns_BT)

    def value_term(self, new: Evaluation, batch: Minibatch) -> Tensor:
        """The value loss of each step, [B, T], times its coefficient."""
        values_BT, old_BT, returns_BT = new.values_BT, batch.old_values_BT, batch.returns_BT
        if self.value_clip is None:
            return self.value_coef * squared_error(values_BT, returns_BT)
        return self.value_coef * clipped_squared_error(
            values_BT, old_BT, returns_BT, self.value_clip
        )
