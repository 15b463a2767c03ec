"""The natural actor-critic: the weights of the compatible critic are the natural gradient.

Peters & Schaal (2008), "Natural actor-critic"; Kakade (2001), "A natural policy gradient",
theorem 1; compatible critics are those of Sutton et al. (2000), theorem 2:

    A_w(s, a) = wᵀ∇log π(a | s),   w = argmin E[(A_w(s, a) − A(s, a))²] = F⁻¹∇η(θ)
    θ ← θ + α w

The regression is for the advantages of GAE here, where Peters & Schaal solve LSTD-Q(λ).
"""

from __future__ import annotations

import torch
from pydantic import Field

from lmpg.functional.least_squares import least_squares
from lmpg.gym.classic.batches import BatchMethod, Steps
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.parameters import (
    actor_parameters,
    distribution,
    grad_logprobs,
    mean_kl,
    move,
)


class NaturalActorCritic(BatchMethod):
    """Advantages regressed on the scores ∇log π of the steps that were taken."""

    step_size: float = Field(0.1, gt=0)
    """α. With whitened advantages and no damping the KL of a step is at most about α²/2."""
    damping: float = Field(1e-3, ge=0)
    """Of the regression (ridge), which has more weights than a small batch can tell apart."""

    def improve(self, policy: MLPPolicy, steps: Steps) -> dict[str, float]:
        """One step of the actor along w."""
        with torch.no_grad():
            old = distribution(policy, steps.observations)
        ψ = grad_logprobs(policy, steps.observations, steps.actions)
        w = least_squares(ψ, steps.advantages, self.damping)
        unexplained = (steps.advantages - ψ @ w).square().mean()
        move(actor_parameters(policy), self.step_size * w)
        with torch.no_grad():
            kl = mean_kl(old, distribution(policy, steps.observations))
        return {
            "grad_norm": float(w.norm()),
            "policy/approx_kl": float(kl),
            "loss/compatible_critic": float(unexplained),
        }
