"""REINFORCE leave-one-out (arXiv 2402.14740): the other responses to a prompt are the baseline."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from lmpg.algorithms.shared.groups import group_credit
from lmpg.algorithms.shared.terms import Regularised
from lmpg.functional.losses import policy_gradient
from lmpg.types import Credit, Evaluation, Minibatch, Rollout


class RLOO(Regularised):
    """−A log π with A = score − mean score of the others; the KL penalty is part of the score."""

    per_step: ClassVar[bool] = False
    group_size: int = Field(4, ge=2)
    """G: responses per prompt; a group of one has nothing to compare with."""

    def assign_credit(self, rollout: Rollout) -> Credit:
        """Equation 8 on every step in the mask; responses without a score stay out."""
        return group_credit(
            rollout, self.penalised_rewards(rollout), self.group_size, "leave_one_out"
        )

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, and the regularisers."""
        policy_BT = policy_gradient(new.logprobs_BT, batch.advantages_BT)
        return {"policy": policy_BT} | self.regularisers(new, batch)
