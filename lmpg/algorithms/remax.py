"""ReMax (arXiv 2310.10505): the score of the greedy response to the prompt is the baseline."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lmpg.algorithms.shared.terms import Regularised
from lmpg.functional.losses import policy_gradient
from lmpg.types import Credit, Evaluation, Minibatch, Rollout


class ReMax(Regularised):
    """−A log π with A = reward-to-go − score of the greedy response; costs one response more for
    each prompt, and no critic."""

    group_size: ClassVar[int] = 1
    per_step: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """Greedy responses, and a reference when there is a KL penalty."""
        return super().needs | {"greedy"}

    def assign_credit(self, rollout: Rollout) -> Credit:
        """Algorithm 1; a KL penalty in the reward is summed from each step on."""
        rewards_BT = self.penalised_rewards(rollout)
        advantages_BT = rollout.returns_to_go(rewards_BT, gamma=1.0)
        return Credit((advantages_BT - rollout.greedy_scores_B[:, None]), rewards_BT)

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, and the regularisers."""
        policy_BT = policy_gradient(new.logprobs_BT, batch.advantages_BT)
        return {"policy": policy_BT} | self.regularisers(new, batch)
