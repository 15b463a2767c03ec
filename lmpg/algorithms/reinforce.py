"""REINFORCE (Williams 1992) on rewards-to-go, with a choice of baselines."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lmpg.functional.advantages import gae
from lmpg.functional.kl import penalised_rewards
from lmpg.functional.masking import Reduction, masked_mean, whitened
from lmpg.functional.policy_losses import policy_gradient
from lmpg.functional.value_losses import squared_error
from lmpg.sections import Section
from lmpg.types import Credit, Evaluation, Minibatch, Rollout

WHITEN_EPS = 1e-8


class REINFORCE(Section):
    """−A log π with A = reward-to-go − baseline; the factor γ^t is left out, as is usual."""

    group_size: ClassVar[int] = 1
    reduction: Reduction = "token_mean"
    """token_mean: every step weighs the same; sequence_mean: every response does."""
    baseline: Literal["none", "batch_mean", "ema", "value"] = "batch_mean"
    """What is subtracted: nothing, this rollout's mean reward-to-go, the running mean of earlier
    rollouts' returns, or a learned critic."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per step."""
    value_coef: float = Field(0.5, ge=0)
    """Weight of the value loss ½(V − R)², where the baseline is the critic."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    kl_coef: float = Field(0.05, ge=0)
    """β: each step's reward is reduced by β (log π − log π_ref)."""
    whiten: bool = False
    """Standardise advantages over the whole rollout."""

    @property
    def needs(self) -> frozenset[str]:
        """A critic for the `value` baseline, a reference when there is a KL penalty."""
        critic = {"critic"} if self.baseline == "value" else set()
        return frozenset(critic | ({"reference"} if self.kl_coef else set()))

    def assign_credit(self, rollout: Rollout) -> Credit:
        """Reward-to-go (GAE at λ = 1, with the critic or with V = 0) less the baseline."""
        rewards_BT = penalised_rewards(
            rollout.rewards_BT,
            rollout.logprobs_BT,
            rollout.ref_logprobs_BT,
            rollout.mask_BT,
            self.kl_coef,
        )
        critic = self.baseline == "value"
        values_BT = rollout.values_BT if critic else torch.zeros_like(rewards_BT)
        next_values_BT = rollout.next_values_BT if critic else values_BT
        advantages_BT = gae(
            rewards_BT,
            values_BT,
            next_values_BT,
            rollout.terminated_BT,
            rollout.ended_BT,
            rollout.mask_BT,
            self.gamma,
            1.0,
        )
        returns_BT = advantages_BT + values_BT if critic else None
        if self.baseline == "ema" and rollout.baseline is not None:
            advantages_BT = advantages_BT - rollout.baseline
        elif self.baseline in ("batch_mean", "ema"):  # the first rollout has no earlier ones
            advantages_BT = advantages_BT - masked_mean(advantages_BT, rollout.counted_BT)
        if self.whiten:
            advantages_BT = whitened(advantages_BT, rollout.counted_BT, WHITEN_EPS)
        return Credit(advantages_BT, rewards_BT, returns_BT)

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, with the critic `value`, with an entropy bonus `entropy`."""
        terms = {"policy": policy_gradient(new.logprobs_BT, batch.advantages_BT)}
        if self.baseline == "value":
            terms["value"] = self.value_coef * squared_error(new.values_BT, batch.returns_BT)
        if self.entropy_coef:
            terms["entropy"] = -self.entropy_coef * new.entropy_BT
        return terms
