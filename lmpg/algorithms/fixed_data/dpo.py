"""Direct preference optimisation (arXiv 2305.18290) and variants: which of two answers is better?

    −log σ(β(Δ_chosen − Δ_rejected) − γ),   Δ = log π(y | x) − log π_ref(y | x)      (equation 7)

(there with γ = 0). βΔ stands for an answer's reward: there is no reward model, and no sampling.
Other losses of the pair take its place, or several are added up; without a reference Δ is log π.
"""

from __future__ import annotations

from torch import Tensor

from lmpg.algorithms.shared.pair_losses import WITHOUT_REFERENCE, PairLosses
from lmpg.functional.preference_losses import pair_loss


class DPO(PairLosses):
    """What an answer's log-probs are compared with, and how a wrong order is punished."""

    per_token: bool = False
    """Mean log-probs of an answer's tokens, not their sum; ipo, odds_ratio and sft take the mean in
    any case."""

    def loss_terms(
        self,
        logprobs_2N: Tensor,
        ref_logprobs_2N: Tensor,
        num_tokens_2N: Tensor,
        shift: float = 0.0,
    ) -> dict[str, Tensor]:
        """`loss` of N pairs, its parts if there are several, and βΔ of both answers; row 0 is of
        the chosen ones. shift: the mean βΔ of the answers so far, from which bco_pair measures."""
        delta_2N = logprobs_2N - ref_logprobs_2N
        mean_delta_2N = delta_2N / num_tokens_2N
        if self.per_token or set(self.loss) - WITHOUT_REFERENCE == {"ipo"}:
            delta_2N = mean_delta_2N
        options = {"beta": self.beta, "gamma": self.gamma, "smoothing": self.label_smoothing}
        means_2N = logprobs_2N / num_tokens_2N
        own = dict.fromkeys(self.loss, delta_2N) | {"ipo": mean_delta_2N}
        parts = {
            name: pair_loss(name, own[name], means_2N, shift=shift, **options) for name in self.loss
        }
        loss_N = sum(weight * parts[name] for name, weight in self.weighted_losses.items())
        terms = {"loss": loss_N}
        if len(parts) > 1:
            terms |= {f"loss/{name}": part_N.detach() for name, part_N in parts.items()}
        chosen_N, rejected_N = self.beta * delta_2N.detach()
        return {**terms, "rewards/chosen": chosen_N, "rewards/rejected": rejected_N}
