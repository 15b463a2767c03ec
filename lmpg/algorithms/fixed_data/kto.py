"""KTO (arXiv 2402.01306): learns from answers that are each desirable or not, without a partner.

    λ_D(1 − σ(β(Δ − z₀))) if desirable, else λ_U(1 − σ(β(z₀ − Δ)))                   (equation 8)

with Δ = log π(y | x) − log π_ref(y | x), and z₀, the KL baseline, from which gains are measured:
max(0, mean Δ) of prompts with answers to other prompts, over the whole minibatch, no gradient.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lmpg.functional.preference_losses import kto_loss
from lmpg.settings.section import Section


class KTO(Section):
    """How gains and losses relative to the reference are valued."""

    beta: float = Field(0.1, gt=0)
    """β: how fast the value of a gain levels off, and so how near the reference it stays."""
    desirable_weight: float = Field(1.0, ge=0)
    """λ_D: weight of the desirable answers; raise it where they are few."""
    undesirable_weight: float = Field(1.0, ge=0)
    """λ_U: weight of the undesirable answers."""

    def loss_terms(
        self, logprobs_N: Tensor, ref_logprobs_N: Tensor, desirable_N: Tensor, kl_baseline: Tensor
    ) -> dict[str, Tensor]:
        """`loss` of each answer, and its `rewards` βΔ; `desirable_N` is bool, `kl_baseline` z₀."""
        delta_N = logprobs_N - ref_logprobs_N
        weights = (self.desirable_weight, self.undesirable_weight)
        loss_N = kto_loss(delta_N, desirable_N, kl_baseline, beta=self.beta, weights=weights)
        return {"loss": loss_N, "rewards": self.beta * delta_N.detach()}
