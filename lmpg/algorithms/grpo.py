"""Group relative policy optimisation (arXiv 2402.03300): no critic, groups are the baseline."""

from __future__ import annotations

from torch import Tensor

from lmpg.algorithms.shared.groups import Grouped
from lmpg.algorithms.shared.terms import Clipped, Regularised
from lmpg.types import Evaluation, Minibatch


class GRPO(Clipped, Grouped, Regularised):
    """Clipped surrogate per token on group-relative scores; Dr. GRPO and DAPO are presets."""

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, and the regularisers."""
        policy_BT = self.surrogate(new.logprobs_BT - batch.old_logprobs_BT, batch)
        return {"policy": policy_BT} | self.regularisers(new, batch)
