"""Group relative policy optimisation (arXiv 2402.03300): no critic, groups are the baseline."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from lmpg.functional.advantages import group_centred, group_standardised, leave_one_out
from lmpg.functional.kl import LossEstimator, reverse_kl_loss
from lmpg.functional.masking import Reduction
from lmpg.functional.policy_losses import clipped_surrogate, log_ratio
from lmpg.sections import Section
from lmpg.types import Credit, Evaluation, Minibatch, Rollout

STD_EPS = 1e-6


class GRPO(Section):
    """A response's advantage is its score relative to its group, the same for all its tokens."""

    group_size: int = Field(8, ge=2)
    """G: responses per prompt; a group of one has nothing to compare with."""
    reduction: Reduction = "sequence_mean"
    """token_mean: every step weighs the same; sequence_mean: every response does."""
    advantage: Literal["standardised", "centred", "leave_one_out"] = "standardised"
    """(r − mean)/std as in the paper, r − mean as in Dr. GRPO, or r − mean of the others."""
    clip: float = Field(0.2, gt=0)
    """ε: the ratio π/π_old earns nothing below 1 − ε, nor above 1 + ε."""
    clip_high: float | None = Field(None, gt=0)
    """ε above 1 where it differs ("clip-higher" of DAPO); none takes `clip`."""
    kl_coef: float = Field(0.0, ge=0)
    """β: weight of the KL to the reference in the loss."""
    kl_estimator: LossEstimator = "k3"
    """k3 (times the ratio, as its gradient requires) or k2; both follow the reverse KL."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""

    @property
    def needs(self) -> frozenset[str]:
        """A reference when there is a KL term."""
        return frozenset({"reference"} if self.kl_coef else ())

    def assign_credit(self, rollout: Rollout) -> Credit:
        """The group-relative score on every chosen step; unscorable responses stay out."""
        scores_PG = rollout.scores_B.view(-1, self.group_size)
        valid_PG = rollout.scorable_B.view(-1, self.group_size)
        if self.advantage == "standardised":
            advantages_PG = group_standardised(scores_PG, valid_PG, STD_EPS)
        elif self.advantage == "centred":
            advantages_PG = group_centred(scores_PG, valid_PG)
        else:
            advantages_PG = leave_one_out(scores_PG, valid_PG)
        return Credit(advantages_PG.view(-1, 1) * rollout.mask_BT, rollout.rewards_BT)

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """`policy`, with a KL coefficient `kl`, with an entropy bonus `entropy`."""
        ratio = log_ratio(new.logprobs_BT, batch.old_logprobs_BT)
        clip_high = self.clip_high or self.clip
        terms = {"policy": clipped_surrogate(ratio, batch.advantages_BT, self.clip, clip_high)}
        if self.kl_coef:
            terms["kl"] = self.kl_coef * reverse_kl_loss(
                new.logprobs_BT, batch.old_logprobs_BT, batch.ref_logprobs_BT, self.kl_estimator
            )
        if self.entropy_coef:
            terms["entropy"] = -self.entropy_coef * new.entropy_BT
        return terms
