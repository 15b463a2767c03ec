"""On-policy distillation: a student learns from what a teacher thinks of the student's own tokens.

    −A log π,  A_t = Σ_k γ^k (log π_T − log π)(a_{t+k} | s_{t+k})    (γ = 1: arXiv 2306.08543)
    β KL(π_T ‖ m) + (1 − β) KL(π ‖ m),  m = βπ_T + (1 − β)π          (GKD, arXiv 2306.13649, eq. 1)

The first needs the teacher's log-probs of the sampled tokens alone, the second whole distributions.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lmpg.functional.kl import k1
from lmpg.functional.losses import policy_gradient
from lmpg.functional.masking import Reduction
from lmpg.settings.section import Section
from lmpg.types import Credit, Evaluation, Minibatch, Rollout


class Distillation(Section):
    """Learns from `model.teacher`; rewards, where there are any, are measured, not learned from."""

    group_size: ClassVar[int] = 1
    per_step: ClassVar[bool] = True
    whiten_minibatches: ClassVar[bool] = False
    divergence: Literal["reverse_kl", "jsd"] = "reverse_kl"
    """reverse_kl: of the sampled tokens, as a reward per step; jsd: of whole distributions, by the
    generalised Jensen-Shannon divergence."""
    beta: float = Field(0.5, ge=0, le=1)
    """β of jsd: 0 is KL(teacher ‖ policy), 1 is KL(policy ‖ teacher)."""
    gamma: float = Field(0.0, ge=0, le=1)
    """γ of reverse_kl: 0 judges each token alone, 1 by the whole response that came of it."""
    reduction: Reduction = "token_mean"
    """token_mean: every step weighs the same; sequence_mean: every response does; fixed_length:
    the sum over a response's steps divided by sampling.max_new_tokens."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""

    @property
    def needs(self) -> frozenset[str]:
        """A teacher in the reference's place, and exact log-probs, or the divergence."""
        extra = "old_logprobs" if self.divergence == "reverse_kl" else "divergence"
        return frozenset({"teacher", "reference", extra})

    def assign_credit(self, rollout: Rollout) -> Credit:
        """What the teacher finds a token likelier than the student does, discounted from there."""
        x_BT = k1(rollout.logprobs_BT, rollout.ref_logprobs_BT)  # type: ignore[arg-type]
        gains_BT = torch.where(rollout.mask_BT, -x_BT, 0.0)
        return Credit(rollout.returns_to_go(gains_BT, self.gamma), gains_BT)

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy` or `distillation`, and `entropy` where there is a bonus."""
        terms = {"entropy": -self.entropy_coef * new.entropy_BT} if self.entropy_coef else {}
        if self.divergence == "jsd":
            return {"distillation": new.divergence_BT, **terms}  # type: ignore[dict-item]
        return {"policy": policy_gradient(new.logprobs_BT, batch.advantages_BT), **terms}
