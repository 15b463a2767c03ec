"""Trust region policy optimisation: the natural gradient's direction, as far as the KL allows.

Schulman, Levine, Moritz, Jordan & Abbeel (2015), arXiv 1502.05477, equation 14 and appendix C:

    maximise L(θ) = E[π_θ(a | s) / π_old(a | s) · A(s, a)]  subject to  E[KL(π_old ‖ π_θ)] ≤ δ

    θ ← θ_old + βʲ √(2δ / sᵀFs) s,   s = F⁻¹∇L,   the least j ≥ 0 that keeps to δ and raises L
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from lmpg.functional.conjugate_gradients import conjugate_gradients
from lmpg.functional.losses import log_ratio
from lmpg.gym.classic.batches import BatchMethod, Steps
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.parameters import (
    actor_parameters,
    distribution,
    fisher_product,
    flat,
    gradient,
    logprobs,
    mean_kl,
    place,
)


class TRPO(BatchMethod):
    """s = (F + damping)⁻¹g by conjugate gradients, step √(2δ / sᵀFs), then a line search."""

    max_kl: float = Field(0.01, gt=0)
    """δ: nats per step that the policy may move, measured as KL(π_old ‖ π)."""
    damping: float = Field(0.1, ge=0)
    """Added to the diagonal of the Fisher information F, which a batch estimates poorly."""
    cg_iterations: int = Field(10, ge=1)
    """Of the conjugate gradients."""
    backtracks: int = Field(10, ge=1)
    """Step lengths that are tried before the policy stays where it is."""
    backtrack_ratio: float = Field(0.8, gt=0, lt=1)
    """β: each of them in terms of the one before."""

    def improve(self, policy: MLPPolicy, steps: Steps) -> dict[str, float]:
        """One step of the actor, or none where no length that was tried is an improvement."""
        surrogate_and_kl = self._objective(policy, steps)
        g = gradient(surrogate_and_kl()[0], actor_parameters(policy))
        Fv = fisher_product(policy, steps.observations)

        def damped(v: Tensor) -> Tensor:
            return Fv(v) + self.damping * v

        s = conjugate_gradients(damped, g, self.cg_iterations, tolerance=1e-5)
        sFs = s @ damped(s)
        longest = (2 * self.max_kl / sFs).sqrt() if sFs > 0 else torch.zeros(())
        scale, kl = self._line_search(policy, longest, s, surrogate_and_kl)
        return {"grad_norm": float(g.norm()), "policy/step_scale": scale, "policy/approx_kl": kl}

    def _objective(self, policy: MLPPolicy, steps: Steps) -> Callable[[], tuple[Tensor, Tensor]]:
        """() ↦ L and E[KL(π_old ‖ π)] of the policy as it is by then; π_old is the one of now."""
        with torch.no_grad():
            old = distribution(policy, steps.observations)

        def surrogate_and_kl() -> tuple[Tensor, Tensor]:
            log_π = logprobs(policy, steps.observations, steps.actions)
            ratio = log_ratio(log_π, steps.old_logprobs).exp()
            kl = mean_kl(old, distribution(policy, steps.observations))
            return (ratio * steps.advantages).mean(), kl

        return surrogate_and_kl

    @torch.no_grad()
    def _line_search(
        self, policy: MLPPolicy, longest: Tensor, s: Tensor, surrogate_and_kl: Callable
    ) -> tuple[float, float]:
        """The first step, from the longest down, whose measured KL ≤ δ and whose L improves."""
        θ = actor_parameters(policy)
        θ_old, (L_old, _) = flat(θ), surrogate_and_kl()
        for tried in range(self.backtracks):
            scale = longest * self.backtrack_ratio**tried
            place(θ, θ_old + scale * s)
            L, kl = surrogate_and_kl()
            if kl <= self.max_kl and L_old < L:
                return float(scale), float(kl)
        place(θ, θ_old)
        return 0.0, 0.0
