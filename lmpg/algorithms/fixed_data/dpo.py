"""Direct preference optimisation (arXiv 2305.18290) and variants: which of two answers is better?

    −log σ(β(Δ_chosen − Δ_rejected) − γ),   Δ = log π(y | x) − log π_ref(y | x)      (equation 7)

(there with γ = 0). βΔ stands for an answer's reward: there is no reward model, and no sampling.
"""

from __future__ import annotations

from pydantic import Field, model_validator
from torch import Tensor

from lmpg.functional.preference_losses import PairLoss, pair_loss
from lmpg.settings.section import Section


class DPO(Section):
    """What an answer's log-probs are compared with, and how a wrong order is punished."""

    loss: PairLoss = "sigmoid"
    """Of the difference between chosen and rejected answer; conservative and robust take
    `label_smoothing` for the share of wrong labels."""
    beta: float = Field(0.1, gt=0)
    """β: how closely the policy stays at the reference; ipo aims for a difference of 1/(2β)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """ε: share of pairs that are labelled the wrong way round."""
    per_token: bool = False
    """Mean log-probs of an answer's tokens, not their sum; ipo always takes the mean."""
    reference: bool = True
    """Compare with the model that training starts from; SimPO does without."""
    gamma: float = Field(0.0, ge=0)
    """γ: by how much the chosen answer's reward is to exceed the other's, as in SimPO."""

    @model_validator(mode="after")
    def _refuse_settings_without_effect(self) -> DPO:
        smooth = self.loss in ("conservative", "robust")
        if smooth != (self.label_smoothing > 0):
            fix = "Set it above 0" if smooth else "Set algorithm.loss to conservative or robust"
            raise ValueError(
                f"algorithm.label_smoothing = {self.label_smoothing} has no effect with "
                f"algorithm.loss = {self.loss}. {fix}"
            )
        if self.loss == "ipo" and self.gamma:
            raise ValueError(
                f"algorithm.gamma = {self.gamma}, but ipo has its margin in algorithm.beta. "
                "Set algorithm.gamma to 0"
            )
        return self

    def loss_terms(
        self, logprobs_2N: Tensor, ref_logprobs_2N: Tensor, num_tokens_2N: Tensor
    ) -> dict[str, Tensor]:
        """`loss` of N pairs, and βΔ of both answers; row 0 is of the chosen ones."""
        delta_2N = logprobs_2N - ref_logprobs_2N
        if self.per_token or self.loss == "ipo":
            delta_2N = delta_2N / num_tokens_2N
        options = (self.loss, self.beta, self.gamma, self.label_smoothing)
        loss_N = pair_loss(delta_2N[0] - delta_2N[1], *options)
        chosen_N, rejected_N = self.beta * delta_2N.detach()
        return {"loss": loss_N, "rewards/chosen": chosen_N, "rewards/rejected": rejected_N}
