"""The natural policy gradient: steepest ascent where distance is that between distributions.

Kakade (2001), "A natural policy gradient", section 2:

    θ ← θ + α F(θ)⁻¹ ∇η(θ),   F(θ) = E_s E_{a∼π}[∇log π(a | s) ∇log π(a | s)ᵀ]

with the Fisher information F over the states of the batch and, exactly, over all actions. The
policy that a small step leads to does not depend on how θ parametrises it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lmpg.functional.conjugate_gradients import conjugate_gradients
from lmpg.gym.classic.batches import BatchMethod, Steps
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.parameters import (
    actor_parameters,
    distribution,
    fisher_product,
    gradient,
    logprobs,
    mean_kl,
    move,
)


class NaturalPolicyGradient(BatchMethod):
    """θ ← θ + α (F + damping)⁻¹ g with a constant α; TRPO chooses it by the KL instead."""

    step_size: float = Field(0.1, gt=0)
    """α. With whitened advantages and no damping the KL of a step is at most about α²/2."""
    damping: float = Field(0.01, ge=0)
    """Added to F's diagonal."""
    solver: Literal["conjugate_gradients", "inverse"] = "conjugate_gradients"
    """inverse: F as a matrix and its pseudo-inverse, for few parameters."""
    cg_iterations: int = Field(20, ge=1)
    """Of the conjugate gradients."""

    def improve(self, policy: MLPPolicy, steps: Steps) -> dict[str, float]:
        """One step of the actor."""
        θ = actor_parameters(policy)
        log_π = logprobs(policy, steps.observations, steps.actions)
        g = gradient((log_π * steps.advantages).mean(), θ)
        with torch.no_grad():
            old = distribution(policy, steps.observations)
        move(θ, self.step_size * self._solved(fisher_product(policy, steps.observations), g))
        with torch.no_grad():
            kl = mean_kl(old, distribution(policy, steps.observations))
        return {"grad_norm": float(g.norm()), "policy/approx_kl": float(kl)}

    def _solved(self, Fv: Callable[[Tensor], Tensor], g: Tensor) -> Tensor:
        """(F + damping)⁻¹ g."""
        if self.solver == "inverse":
            one = torch.eye(len(g))
            F = torch.stack([Fv(column) for column in one])
            return torch.linalg.pinv(F + self.damping * one, rtol=1e-5, hermitian=True) @ g

        def damped(v: Tensor) -> Tensor:
            return Fv(v) + self.damping * v

        return conjugate_gradients(damped, g, self.cg_iterations, tolerance=1e-5)
