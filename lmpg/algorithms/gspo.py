"""Group sequence policy optimisation (arXiv 2507.18071): one ratio for a whole response."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lmpg.algorithms.shared.groups import Grouped
from lmpg.algorithms.shared.terms import Clipped, Regularised
from lmpg.functional.losses import sequence_log_ratio
from lmpg.types import Evaluation, Minibatch


class GSPO(Clipped, Grouped, Regularised):
    """Clipped surrogate on the mean log-ratio of a response, and GRPO's credit."""

    clip: float | None = Field(3e-4, gt=0)
    """ε below 1, of the length-normalised ratio: hundreds of times smaller than per token."""
    clip_high: float | None = Field(4e-4, gt=0)
    """ε above 1 where it differs; none takes `clip`."""

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, the same on every step of a response, and the regularisers."""
        ratio = sequence_log_ratio(new.logprobs_BT - batch.old_logprobs_BT, batch.mask_BT)
        return {"policy": self.surrogate(ratio, batch)} | self.regularisers(new, batch)
