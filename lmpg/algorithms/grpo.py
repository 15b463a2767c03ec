"""Group relative policy optimisation (arXiv 2402.03300): no critic, groups are the baseline."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lmpg.algorithms.shared.groups import Grouped
from lmpg.algorithms.shared.terms import Regularised
from lmpg.functional.losses import clipped_surrogate, log_ratio
from lmpg.types import Evaluation, Minibatch


class GRPO(Grouped, Regularised):
    """Clipped surrogate per token on group-relative scores; Dr. GRPO and DAPO are presets."""

    clip: float = Field(0.2, gt=0)
    """ε: the ratio π/π_old earns nothing below 1 − ε, nor above 1 + ε."""
    clip_high: float | None = Field(None, gt=0)
    """ε above 1 where it differs ("clip-higher" of DAPO); none takes `clip`."""

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, and the regularisers."""
        ratio = log_ratio(new.logprobs_BT, batch.old_logprobs_BT)
        policy_BT = clipped_surrogate(ratio, batch.advantages_BT, self.clip, self.clip_high)
        return {"policy": policy_BT} | self.regularisers(new, batch)
