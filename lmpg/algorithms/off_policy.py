"""The importance-weighted policy gradient, for rollouts of an older policy μ."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lmpg.algorithms.shared.terms import OfTurns, Regularised
from lmpg.functional.losses import RatioLevel, importance_weights, policy_gradient
from lmpg.functional.masking import masked_mean
from lmpg.types import Credit, Evaluation, Minibatch, Rollout


class OffPolicy(Regularised, OfTurns):
    """−w·A·log π with w = min(π/μ, C) without gradient: nothing is clipped away."""

    group_size: ClassVar[int] = 1
    ratio: RatioLevel = "token"
    """token: π/μ of the step alone, of little variance but biased; decision: the product up to
    the step; sequence: that over the response, unbiased without a cap, of large variance."""
    ratio_cap: float | None = Field(2.0, ge=1)
    """C: the largest weight, which trades variance for bias; none leaves weights as they are."""
    baseline: Literal["none", "batch_mean"] = "batch_mean"
    """What is subtracted from a reward-to-go: nothing, or this rollout's mean."""

    @property
    def needs(self) -> frozenset[str]:
        """Ratios, and a reference when there is a KL penalty."""
        return super().needs | {"ratios"}

    def assign_credit(self, rollout: Rollout) -> Credit:
        """Reward-to-go, discounted between turns at most, less the baseline."""
        rewards_BT = self.penalised_rewards(rollout)
        advantages_BT = rollout.returns_to_go(rewards_BT, 1.0, self.turn_gamma)
        if self.baseline == "batch_mean":
            advantages_BT = advantages_BT - masked_mean(advantages_BT, rollout.counted_BT)
        return Credit(advantages_BT, rewards_BT)

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, and the regularisers."""
        ratio = new.logprobs_BT - batch.old_logprobs_BT
        weights_BT = importance_weights(ratio, batch.mask_BT, self.ratio, self.ratio_cap)
        policy_BT = policy_gradient(new.logprobs_BT, weights_BT * batch.advantages_BT)
        return {"policy": policy_BT} | self.regularisers(new, batch)
