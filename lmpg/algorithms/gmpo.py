"""Geometric-mean policy optimisation (arXiv 2507.20673): the geometric mean of clipped ratios."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lmpg.algorithms.shared.groups import Grouped
from lmpg.algorithms.shared.terms import Clipped, Regularised
from lmpg.functional.losses import clipped_surrogate, geometric_mean_log_ratio
from lmpg.types import Evaluation, Minibatch


class GMPO(Clipped, Grouped, Regularised):
    """−A (∏ clipped ρ)^(1/|y|), which no single token's ratio can dominate, and GRPO's credit."""

    clip: float | None = Field(0.4, gt=0)
    """ε of a step's log-ratio, so its ratio earns nothing beyond e^±ε; none does not clip."""
    clip_high: float | None = Field(None, gt=0)
    """ε of log-ratios above 0 where it differs; none takes `clip`."""

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, the same on every step of a response, and the regularisers."""
        mean_BT = geometric_mean_log_ratio(
            new.logprobs_BT - batch.old_logprobs_BT,
            batch.advantages_BT,
            batch.mask_BT,
            self.clip,
            self.clip_high,
        )
        policy_BT = clipped_surrogate(mean_BT, batch.advantages_BT, None, None)
        return {"policy": self.bounded(policy_BT, batch)} | self.regularisers(new, batch)
