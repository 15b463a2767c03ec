"""REINFORCE (Williams 1992): θ ← θ + α Σ_t γ^t (G_t − b) ∇log π(a_t | s_t), G_t reward-to-go."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lmpg.algorithms.shared.terms import OfTurns, Regularised
from lmpg.functional.losses import policy_gradient, squared_error
from lmpg.functional.masking import WHITEN_EPS, masked_mean, whitened
from lmpg.types import Credit, Evaluation, Minibatch, Rollout


class REINFORCE(Regularised, OfTurns):
    """−A log π with A = reward-to-go − baseline."""

    group_size: ClassVar[int] = 1
    baseline: Literal["none", "batch_mean", "ema", "value"] = "batch_mean"
    """What is subtracted: nothing, the mean of this rollout or of earlier ones, or a critic's V."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per step."""
    gamma_t: bool = False
    """Weigh step t by γ^t, as the gradient of the discounted return asks; usually left out."""
    value_coef: float = Field(0.5, ge=0)
    """Weight of the value loss ½(V − R)², where the baseline is the critic."""
    whiten: bool = False
    """Standardise advantages over the whole rollout."""

    @property
    def needs(self) -> frozenset[str]:
        """A critic for the `value` baseline, a reference when there is a KL penalty."""
        return super().needs | ({"critic"} if self.baseline == "value" else set())

    def assign_credit(self, rollout: Rollout) -> Credit:
        """Reward-to-go (with a critic GAE at λ = 1, which bootstraps) less the baseline."""
        rewards_BT, returns_BT = self.penalised_rewards(rollout), None
        if self.baseline == "value":
            advantages_BT = rollout.gae(rewards_BT, self.gamma, 1.0, self.turn_gamma)
            returns_BT = advantages_BT + rollout.values_BT
        else:
            advantages_BT = rollout.returns_to_go(rewards_BT, self.gamma, self.turn_gamma)
        if self.baseline == "ema" and rollout.baseline is not None:
            advantages_BT = advantages_BT - rollout.baseline
        elif self.baseline in ("batch_mean", "ema"):  # the first rollout has no earlier ones
            advantages_BT = advantages_BT - masked_mean(advantages_BT, rollout.counted_BT)
        if self.whiten:
            advantages_BT = whitened(advantages_BT, rollout.counted_BT, WHITEN_EPS)
        if self.gamma_t:
            discounts_BT = rollout.discounts_from_start(self.gamma, self.turn_gamma)
            advantages_BT = advantages_BT * discounts_BT
        return Credit(advantages_BT, rewards_BT, returns_BT)

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, with the critic `value`, and the regularisers."""
        terms = {"policy": policy_gradient(new.logprobs_BT, batch.advantages_BT)}
        if self.baseline == "value":
            terms["value"] = self.value_coef * squared_error(new.values_BT, batch.returns_BT)
        return terms | self.regularisers(new, batch)
