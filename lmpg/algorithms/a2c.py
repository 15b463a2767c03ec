"""Advantage actor-critic (arXiv 1602.01783, synchronous): a policy gradient with a learned V.

maximise E[A log π(a | s)],   A_t = r_t + γ r_{t+1} + … + γⁿ V(s_{t+n}) − V(s_t)
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from lmpg.algorithms.shared.terms import Critic, Regularised
from lmpg.functional.losses import policy_gradient
from lmpg.types import Credit, Evaluation, Minibatch, Rollout


class A2C(Regularised, Critic):
    """−A log π with A by GAE; PPO's first step on a rollout (arXiv 2205.09123). No factor γ^t."""

    group_size: ClassVar[int] = 1
    lam: float = Field(1.0, ge=0, le=1)
    """GAE's λ: 1 is the n-step advantage of the source, n being what is left of the rollout."""
    value_clip: float | None = Field(None, gt=0)
    """Range the value may move in one update; none does not clip."""
    whiten: bool = False
    """Standardise advantages over the whole rollout."""

    @property
    def needs(self) -> frozenset[str]:
        """A critic, and a reference when there is a KL penalty."""
        return super().needs | {"critic"}

    def assign_credit(self, rollout: Rollout) -> Credit:
        """Per-step advantages by GAE on the rewards less the KL penalty."""
        return self.gae_credit(rollout, self.penalised_rewards(rollout))

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, `value`, and the regularisers."""
        policy_BT = policy_gradient(new.logprobs_BT, batch.advantages_BT)
        terms = {"policy": policy_BT, "value": self.value_term(new, batch)}
        return terms | self.regularisers(new, batch)
