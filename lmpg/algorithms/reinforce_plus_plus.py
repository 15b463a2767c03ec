"""REINFORCE++ (arXiv 2501.03262): no critic, advantages standardised over the global batch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from lmpg.algorithms.shared.groups import group_credit
from lmpg.algorithms.shared.terms import Clipped, OfTurns, Regularised
from lmpg.functional.masking import WHITEN_EPS, whitened
from lmpg.types import Credit, Evaluation, Minibatch, Rollout


class ReinforcePlusPlus(Clipped, Regularised, OfTurns):
    """Clipped surrogate on rewards-to-go, or on scores less their group's mean, standardised."""

    whiten: ClassVar[bool] = True
    group_size: int = Field(1, ge=1)
    """G: responses per prompt; 2 or more for the group's mean."""
    baseline: Literal["none", "group_mean"] = "none"
    """group_mean: the form "REINFORCE++-baseline", one advantage for all steps of a response."""

    @model_validator(mode="after")
    def _require_a_group_for_its_baseline(self) -> ReinforcePlusPlus:
        if self.baseline == "group_mean" and self.group_size < 2:
            raise ValueError(
                "algorithm.group_size = 1 with algorithm.baseline = group_mean: a group of one "
                "has nothing to compare with. Set algorithm.group_size to 2 or more"
            )
        return self

    @property
    def per_step(self) -> bool:  # type: ignore[override]
        """Without groups each step has a reward-to-go of its own."""
        return self.baseline == "none"

    @property
    def needs(self) -> frozenset[str]:
        """Ratios, and a reference when there is a KL penalty."""
        return super().needs | {"ratios"}

    def assign_credit(self, rollout: Rollout) -> Credit:
        """Rewards-to-go (discounted between turns at most) or centred scores, standardised."""
        rewards_BT = self.penalised_rewards(rollout)
        if self.baseline == "none":
            advantages_BT = rollout.returns_to_go(rewards_BT, 1.0, self.turn_gamma)
        else:
            credit = group_credit(rollout, rewards_BT, self.group_size, "centred")
            advantages_BT = credit.advantages_BT
        return Credit(whitened(advantages_BT, rollout.counted_BT, WHITEN_EPS), rewards_BT)

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, and the regularisers."""
        policy_BT = self.surrogate(new.logprobs_BT - batch.old_logprobs_BT, batch)
        return {"policy": policy_BT} | self.regularisers(new, batch)
