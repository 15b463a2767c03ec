"""CISPO (arXiv 2506.13585): the ratio is a capped weight, so no token loses its gradient."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lmpg.algorithms.shared.groups import Grouped
from lmpg.algorithms.shared.terms import Regularised
from lmpg.functional.losses import importance_weights, policy_gradient
from lmpg.types import Evaluation, Minibatch


class CISPO(Grouped, Regularised):
    """−sg[min(ρ, c)]·A·log π, and GRPO's credit; the mean over all tokens (equation 4)."""

    ratio_cap: float = Field(5.0, ge=1)
    """c: the largest weight ρ; a cap on ρ itself, not a distance from 1 as `clip` is elsewhere."""

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, and the regularisers."""
        ratio = new.logprobs_BT - batch.old_logprobs_BT
        weights_BT = importance_weights(ratio, batch.mask_BT, "token", self.ratio_cap)
        policy_BT = policy_gradient(new.logprobs_BT, weights_BT * batch.advantages_BT)
        return {"policy": policy_BT} | self.regularisers(new, batch)
