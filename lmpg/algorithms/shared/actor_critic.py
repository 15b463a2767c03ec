"""Learning with a critic: GAE for the advantages, a squared error for the values."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lmpg.functional.masking import WHITEN_EPS, whitened
from lmpg.functional.value_losses import clipped_squared_error, squared_error
from lmpg.settings.section import Section
from lmpg.types import Credit, Evaluation, Minibatch, Rollout


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
