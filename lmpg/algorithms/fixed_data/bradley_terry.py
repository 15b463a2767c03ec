"""The Bradley-Terry model of preferences (1952), by which reward models learn.

    −log σ(r_chosen − r_rejected − margin) + c(r_chosen + r_rejected)²

(arXiv 2203.02155, equation 1 for K = 2; the margin is that of arXiv 2307.09288, equation 2; the
second term is that of arXiv 2312.09244.)
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lmpg.functional.preference_losses import bradley_terry, off_centre, pair_accuracy
from lmpg.settings.section import Section


class BradleyTerry(Section):
    """What is asked of the two scores of a pair."""

    margin: float = Field(0.0, ge=0)
    """By how much the chosen text is to score higher; a pair's own margin is added."""
    centring: float = Field(0.0, ge=0)
    """c: weight of (chosen + rejected)² in the loss, which keeps scores around 0; 0.01 is usual."""

    def loss_terms(self, scores_2N: Tensor, margins_N: Tensor) -> dict[str, Tensor]:
        """`loss` and `pair_accuracy` of N pairs; row 0 is of the chosen texts, row 1 of the
        rejected ones. pair_accuracy: 1 where the chosen text scores higher, ½ at a tie, else 0."""
        chosen_N, rejected_N = scores_2N
        loss_N = bradley_terry(chosen_N, rejected_N, margins_N + self.margin)
        if self.centring:
            loss_N = loss_N + self.centring * off_centre(chosen_N, rejected_N)
        return {
            "loss": loss_N,
            "pair_accuracy": pair_accuracy(chosen_N.detach(), rejected_N.detach()),
        }
