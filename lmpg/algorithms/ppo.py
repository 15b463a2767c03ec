"""Proximal policy optimisation (arXiv 1707.06347) with a critic, for tokens and for actions."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from lmpg.functional.advantages import gae
from lmpg.functional.kl import penalised_rewards
from lmpg.functional.masking import Reduction, whitened
from lmpg.functional.policy_losses import clipped_surrogate, log_ratio
from lmpg.functional.value_losses import clipped_squared_error, squared_error
from lmpg.sections import Section
from lmpg.types import Credit, Evaluation, Minibatch, Rollout

WHITEN_EPS = 1e-8


class PPO(Section):
    """GAE on rewards less a KL penalty, clipped surrogate, clipped value loss."""

    group_size: ClassVar[int] = 1
    reduction: Reduction = "token_mean"
    """token_mean: every step weighs the same; sequence_mean: every response does."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per step."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's λ: 0 trusts the critic, 1 the sampled return."""
    clip: float = Field(0.2, gt=0)
    """ε: the ratio π/π_old earns nothing beyond 1 ± ε."""
    value_clip: float | None = Field(0.2, gt=0)
    """Range the value may move in one update; none does not clip."""
    value_coef: float = Field(0.1, ge=0)
    """Weight of the value loss ½(V − R)². On a shared trunk a large one drowns the policy."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    kl_coef: float = Field(0.05, ge=0)
    """β: each step's reward is reduced by β (log π − log π_ref)."""
    kl_target: float | None = Field(None, gt=0)
    """Nats per response: β doubles above 1.5 times this and halves below 1/1.5; none keeps β."""
    whiten: bool = True
    """Standardise advantages over the whole rollout."""

    @property
    def needs(self) -> frozenset[str]:
        """A critic, and a reference when there is a KL penalty."""
        return frozenset({"critic", "reference"} if self.kl_coef else {"critic"})

    def assign_credit(self, rollout: Rollout) -> Credit:
        """Per-step advantages by GAE; returns from the advantages before whitening."""
        rewards_BT = penalised_rewards(
            rollout.rewards_BT,
            rollout.logprobs_BT,
            rollout.ref_logprobs_BT,
            rollout.mask_BT,
            self.kl_coef,
        )
        advantages_BT = gae(
            rewards_BT,
            rollout.values_BT,
            rollout.next_values_BT,
            rollout.terminated_BT,
            rollout.ended_BT,
            rollout.mask_BT,
            self.gamma,
            self.lam,
        )
        returns_BT = advantages_BT + rollout.values_BT
        if self.whiten:
            advantages_BT = whitened(advantages_BT, rollout.counted_BT, WHITEN_EPS)
        return Credit(advantages_BT, rewards_BT, returns_BT)

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, `value` and, with an entropy bonus, `entropy`."""
        ratio = log_ratio(new.logprobs_BT, batch.old_logprobs_BT)
        policy_BT = clipped_surrogate(ratio, batch.advantages_BT, self.clip, self.clip)
        value_BT = (
            squared_error(new.values_BT, batch.returns_BT)
            if self.value_clip is None
            else clipped_squared_error(
                new.values_BT, batch.old_values_BT, batch.returns_BT, self.value_clip
            )
        )
        terms = {"policy": policy_BT, "value": self.value_coef * value_BT}
        if self.entropy_coef:
            terms["entropy"] = -self.entropy_coef * new.entropy_BT
        return terms
