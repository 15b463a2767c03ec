"""RAFT, or best-of-n (arXiv 2304.06767): supervised learning from the best responses of a group."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from lmpg.algorithms.shared.terms import Regularised
from lmpg.functional.advantages import best_of_group
from lmpg.functional.losses import policy_gradient
from lmpg.types import Credit, Evaluation, Minibatch, Rollout


class RAFT(Regularised):
    """−log π of the best responses; the others teach nothing, so a batch holds the best alone."""

    per_step: ClassVar[bool] = False
    whiten_minibatches: ClassVar[bool] = False  # type: ignore[misc]  # all are alike
    group_size: int = Field(8, ge=2)
    """n: responses per prompt, of which the best are kept."""
    keep: int = Field(1, ge=1)
    """How many of a group are kept, below group_size."""
    min_score: float | None = None
    """Responses that score less are never kept; none keeps the best of a bad group too."""
    kl_coef: float = Field(0.0, ge=0)
    """β: weight of the KL to the reference; 0 leaves it out."""

    @model_validator(mode="after")
    def _require_a_choice(self) -> RAFT:
        if self.keep >= self.group_size:
            raise ValueError(
                f"algorithm.keep = {self.keep} of algorithm.group_size = {self.group_size} "
                "responses leaves none out. Set algorithm.keep below algorithm.group_size"
            )
        if self.kl_coef and self.kl_in == "loss":
            raise ValueError(
                "algorithm.kl_in = loss: the best responses alone are learned from, and their KL "
                "is not the policy's. Set algorithm.kl_in to reward, or algorithm.kl_coef to 0"
            )
        return self

    def assign_credit(self, rollout: Rollout) -> Credit:
        """1 on every step of the kept responses, which alone are learned from."""
        rewards_BT = self.penalised_rewards(rollout)
        valid_B = rollout.scorable_B
        if self.min_score is not None:
            valid_B = valid_B & (rewards_BT.sum(1) >= self.min_score)
        shape = (-1, self.group_size)
        best_PG = best_of_group(rewards_BT.sum(1).view(shape), valid_B.view(shape), self.keep)
        learned_B = best_PG.view(-1)
        return Credit(learned_B[:, None] * rollout.mask_BT.float(), rewards_BT, learned_B=learned_B)

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, and the regularisers."""
        policy_BT = policy_gradient(new.logprobs_BT, batch.advantages_BT)
        return {"policy": policy_BT} | self.regularisers(new, batch)
