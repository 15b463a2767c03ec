"""Group sequence policy optimisation (arXiv 2507.18071): one ratio for a whole response."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lmpg.algorithms.shared.groups import Grouped
from lmpg.algorithms.shared.terms import Regularised
from lmpg.functional.losses import clipped_surrogate, sequence_log_ratio
from lmpg.types import Evaluation, Minibatch


class GSPO(Grouped, Regularised):
    """Clipped surrogate on the mean log-ratio of a response, and GRPO's credit."""

    clip: float = Field(3e-4, gt=0)
    """ε below 1, of the length-normalised ratio: hundreds of times smaller than per token."""
    clip_high: float = Field(4e-4, gt=0)
    """ε above 1."""

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, the same on every step of a response, and the regularisers."""
        ratio = sequence_log_ratio(new.logprobs_BT - batch.old_logprobs_BT, batch.mask_BT)
        policy_BT = clipped_surrogate(ratio, batch.advantages_BT, self.clip, self.clip_high)
        return {"policy": policy_BT} | self.regularisers(new, batch)
