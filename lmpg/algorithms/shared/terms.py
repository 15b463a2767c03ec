"""Entropy bonus, KL penalty, clip and critic: their settings, and what they do to the loss."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from lmpg.functional.advantages import length_adaptive_lambda
from lmpg.functional.kl import Estimator, kl_loss, penalised_rewards
from lmpg.functional.losses import (
    clipped_squared_error,
    clipped_surrogate,
    dual_clipped,
    squared_error,
)
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
    """In the loss k3 (times the ratio, as its gradient requires), k2, or plain_k3, k3 without the
    ratio: the gradient of KL(π_ref ‖ π), as in most code for GRPO. In the reward always k1."""
    kl_target: float | None = Field(None, gt=0)
    """Nats per response that an adaptive β is steered to; none keeps β."""
    kl_horizon: float = Field(200.0, gt=0)
    """Responses over which an adaptive β changes by 20 % at most."""
    whiten_minibatches: bool = False
    """Standardise advantages over each minibatch, as well as what the algorithm does to them."""

    @model_validator(mode="after")
    def _require_kl_where_it_has_an_effect(self) -> Regularised:
        if self.kl_coef and self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "algorithm.kl_estimator = k1 with algorithm.kl_in = loss: its expected gradient "
                "is zero there, so it holds nothing back. Set algorithm.kl_estimator to k3, k2 or "
                "plain_k3"
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
                "Set algorithm.clip too, or algorithm.clip_high to none"
            )
        return self

    @property
    def needs(self) -> frozenset[str]:
        """A reference where there is a KL penalty; ratios too if it is in the loss, and old
        log-probs if it is in the reward."""
        if not self.kl_coef:
            return frozenset()
        if self.kl_in == "reward":
            return frozenset({"reference", "old_logprobs"})
        ratios = {"ratios"} if self.kl_estimator != "plain_k3" else set()
        return frozenset({"reference", *ratios})

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
            kl_BT = kl_loss(new.logprobs_BT, old_BT, ref_BT, self.kl_estimator)
            terms["kl"] = self.kl_coef * kl_BT
        if self.entropy_coef:
            terms["entropy"] = -self.entropy_coef * new.entropy_BT
        return terms


class Clipped(Section):
    """Fields of methods that clip ratios, beside `Regularised`, and their surrogate."""

    clip: float | None = Field(0.2, gt=0)
    """ε: the ratio π/π_old earns nothing beyond 1 ± ε; none does not clip."""
    clip_high: float | None = Field(None, gt=0)
    """ε above 1 where it differs ("clip-higher" of DAPO); none takes `clip`."""
    dual_clip: float | None = Field(None, gt=1)
    """c: where A < 0 the loss is at most −cA (arXiv 1912.09729); none leaves it unbounded."""

    def surrogate(self, log_ratios_BT: Tensor, batch: Minibatch) -> Tensor:
        """The clipped surrogate of each step, [B, T], bounded where there is a dual clip."""
        advantages_BT = batch.advantages_BT
        clipped_BT = clipped_surrogate(log_ratios_BT, advantages_BT, self.clip, self.clip_high)
        return self.bounded(clipped_BT, batch)

    def bounded(self, policy_BT: Tensor, batch: Minibatch) -> Tensor:
        """A policy term [B, T] with the dual clip, where there is one."""
        if self.dual_clip is None:
            return policy_BT
        return dual_clipped(policy_BT, batch.advantages_BT, self.dual_clip)


class OfTurns(Section):
    """Field of methods that discount what later turns of a conversation bring."""

    turn_gamma: float | None = Field(None, gt=0, le=1)
    """Discount from a turn's end to the next turn, in an environment of text; none: as within."""


class Critic(OfTurns):
    """Fields of methods whose baseline is learned."""

    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per step."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's λ: 0 trusts the critic, 1 the sampled return."""
    turn_lam: float | None = Field(None, ge=0, le=1)
    """λ from a turn's end to the next turn, in an environment of text; none: as within."""
    lam_alpha: float | None = Field(None, gt=0)
    """α: advantages of a response of l steps take λ = 1 − 1/(αl), at least 0, in place of `lam`
    (VAPO, arXiv 2504.05118, with α = 0.05); none takes `lam` for all."""
    lam_critic: float | None = Field(None, ge=0, le=1)
    """λ of the critic's targets, where it differs: 1 is the sampled return (VAPO); none takes those
    of the advantages."""
    value_coef: float = Field(0.1, ge=0)
    """Weight of the value loss ½(V − R)². On a shared trunk a large one drowns the policy."""
    value_clip: float | None = Field(0.2, gt=0)
    """Range the value may move in one update; none does not clip."""
    whiten: bool = True
    """Standardise advantages over the whole rollout."""

    def gae_credit(self, rollout: Rollout, rewards_BT: Tensor) -> Credit:
        """Per-step advantages by GAE; returns from the advantages before whitening."""
        lam: float | Tensor = self.lam
        if self.lam_alpha is not None:
            lam = length_adaptive_lambda(rollout.mask_BT.sum(1, keepdim=True), self.lam_alpha)
        of_turns = self.turn_gamma, self.turn_lam
        advantages_BT = targets_BT = rollout.gae(rewards_BT, self.gamma, lam, *of_turns)
        if self.lam_critic is not None:  # between turns as well
            targets_BT = rollout.gae(rewards_BT, self.gamma, self.lam_critic, self.turn_gamma)
        returns_BT = targets_BT + rollout.values_BT
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
