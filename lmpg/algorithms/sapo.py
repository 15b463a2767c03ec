"""Soft adaptive policy optimisation (arXiv 2511.20347): a smooth gate in place of the clip."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lmpg.algorithms.shared.groups import Grouped
from lmpg.algorithms.shared.terms import Regularised
from lmpg.functional.losses import log_ratio, soft_gated_surrogate
from lmpg.types import Evaluation, Minibatch


class SAPO(Grouped, Regularised):
    """−A σ(τ(ρ − 1)) 4/τ, and GRPO's credit."""

    tau_positive: float = Field(1.0, gt=0)
    """τ where A > 0: the larger, the sooner the gradient fades as ρ leaves 1."""
    tau_negative: float = Field(1.05, gt=0)
    """τ elsewhere; a little larger, as pushing down disturbs all other tokens."""

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, and the regularisers."""
        ratio = log_ratio(new.logprobs_BT, batch.old_logprobs_BT)
        policy_BT = soft_gated_surrogate(
            ratio, batch.advantages_BT, self.tau_positive, self.tau_negative
        )
        return {"policy": policy_BT} | self.regularisers(new, batch)
