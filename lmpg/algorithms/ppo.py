"""Proximal policy optimisation (arXiv 1707.06347) with a critic, for tokens and for actions.

    maximise E[min(ρA, clip(ρ, 1 − ε, 1 + ε) A)],   ρ = π(a | s) / π_old(a | s)     (equation 7)
    or E[ρA − β KL(π_old ‖ π)]                                                       (equation 8)

over several epochs of minibatches of each rollout, with A by GAE (arXiv 1506.02438).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from lmpg.algorithms.shared.terms import Clipped, Critic, Regularised
from lmpg.functional.kl import k3
from lmpg.types import Credit, Evaluation, Minibatch, Rollout


class PPO(Clipped, Regularised, Critic):
    """GAE on rewards less a KL penalty; a surrogate that is clipped, or penalised by its KL."""

    group_size: ClassVar[int] = 1
    penalty_coef: float = Field(0.0, ge=0)
    """Weight of KL(π_old ‖ π), which may stand in place of the clipping (equation 8)."""
    penalty_target: float | None = Field(None, gt=0)
    """Nats per step: `penalty_coef` doubles above 1.5 times this, halves below 1/1.5; none: no."""

    @property
    def needs(self) -> frozenset[str]:
        """A critic, ratios, and a reference when there is a KL penalty."""
        return super().needs | {"critic", "ratios"}

    def assign_credit(self, rollout: Rollout) -> Credit:
        """Per-step advantages by GAE on the rewards less the KL penalty."""
        return self.gae_credit(rollout, self.penalised_rewards(rollout))

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, `value`, with a penalty `penalty`, and the regularisers."""
        policy_BT = self.surrogate(new.logprobs_BT - batch.old_logprobs_BT, batch)
        terms = {"policy": policy_BT, "value": self.value_term(new, batch)}
        if self.penalty_coef:
            terms["penalty"] = self.penalty_coef * k3(batch.old_logprobs_BT, new.logprobs_BT)
        return terms | self.regularisers(new, batch)
