"""Maximum likelihood of given tokens, and dynamic fine-tuning (DFT, arXiv 2508.05629).

    nll: −log π(token | tokens before it)        dft: the same times π(token | …), no gradient

The gradient of nll is that of a policy gradient whose reward, 1/π, is the larger the less likely a
token is. DFT takes that factor out, so that unlikely tokens no longer rule the update.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lmpg.functional.losses import probability_weighted_nll
from lmpg.settings.section import Section


class MaximumLikelihood(Section):
    """How much each token of a text counts."""

    loss: Literal["nll", "dft"] = "nll"
    """Of each token: its negative log-likelihood, or that times its probability (DFT)."""

    def loss_terms(self, logprobs: Tensor) -> dict[str, Tensor]:
        """`loss` of each token, of the shape that the log-probs have, and of dft also `nll`."""
        if self.loss == "dft":
            return {"loss": probability_weighted_nll(logprobs), "nll": -logprobs.detach()}
        return {"loss": -logprobs}
