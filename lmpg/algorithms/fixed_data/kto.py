"""KTO (arXiv 2402.01306): learns from answers that are each desirable or not, without a partner.

    λ_D(1 − σ(β(Δ − z₀))) if desirable, else λ_U(1 − σ(β(z₀ − Δ)))                   (equation 8)

with Δ = log π(y | x) − log π_ref(y | x), and z₀, the KL baseline, from which gains are measured:
max(0, mean Δ) of prompts with answers to other prompts, over the whole minibatch, no gradient.

BCO (arXiv 2404.04656) trains a classifier instead, −log σ(±(βΔ − δ)), and measures from the mean
reward δ of the answers so far. APO-zero (2408.06266) measures from the reference: z₀ = 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lmpg.functional.preference_losses import bco_loss, kto_loss
from lmpg.settings.section import Section


class KTO(Section):
    """How gains and losses relative to the reference are valued."""

    loss: Literal["kto", "bco", "apo_zero_unpaired"] = "kto"
    """What is asked of an answer's gain, and from where the gain is measured."""
    beta: float = Field(0.1, gt=0)
    """β: how fast the value of a gain levels off, and so how near the reference it stays."""
    desirable_weight: float = Field(1.0, ge=0)
    """λ_D: weight of the desirable answers; raise it where they are few."""
    undesirable_weight: float = Field(1.0, ge=0)
    """λ_U: weight of the undesirable answers."""

    @property
    def compares_with_drift(self) -> bool:
        """Whether `loss_terms` needs z₀."""
        return self.loss == "kto"

    @property
    def compares_with_mean_reward(self) -> bool:
        """Whether `loss_terms` needs the mean reward of the answers learned so far, δ."""
        return self.loss == "bco"

    def loss_terms(
        self, logprobs_N: Tensor, ref_logprobs_N: Tensor, desirable_N: Tensor, measured_from: Tensor
    ) -> dict[str, Tensor]:
        """`loss` of each answer, and its `rewards` βΔ. `desirable_N` is bool; `measured_from` is z₀
        for kto, δ for bco, 0 for apo_zero_unpaired."""
        delta_N = logprobs_N - ref_logprobs_N
        weights = (self.desirable_weight, self.undesirable_weight)
        if self.compares_with_mean_reward:
            loss_N = bco_loss(self.beta * delta_N, desirable_N, measured_from)
            loss_N = loss_N * torch.where(desirable_N, *weights)
        else:
            loss_N = kto_loss(delta_N, desirable_N, measured_from, beta=self.beta, weights=weights)
        return {"loss": loss_N, "rewards": self.beta * delta_N.detach()}
