"""One-step actor-critic: the TD error judges each action as soon as it was taken.

Sutton & Barto (2018), section 13.5, "One-step Actor–Critic (episodic)":

    δ ← R + γ v̂(S′, w) − v̂(S, w)                 (v̂(S′, w) = 0 if S′ is terminal)
    w ← w + α_w δ ∇v̂(S, w)
    θ ← θ + α_θ I δ ∇log π(A | S, θ),  I ← γI     (I = 1 at the start of an episode)
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from lmpg.gym.classic.incremental import (
    IncrementalMethod,
    grad_logprob,
    next_value,
    transitions,
    value_and_gradient,
)
from lmpg.gym.environments.runner import Runner
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.parameters import actor_parameters, critic_parameters, move


class TdActorCritic(IncrementalMethod):
    """Actor and critic move after each step."""

    gamma: float = Field(0.99, ge=0, le=1)
    """Discount γ per step."""
    actor_step_size: float = Field(1e-3, ge=0)
    """α_θ."""
    critic_step_size: float = Field(1e-2, ge=0)
    """α_w."""
    discount_states: bool = False
    """Whether the actor's step has the book's factor I = γ^t, without which late states count as
    much as early ones, as is usual."""

    def initial_state(self, policy: MLPPolicy, seed: int) -> dict[str, Any]:
        """I, the discount so far."""
        return {"I": 1.0}

    def iterate(
        self,
        policy: MLPPolicy,
        runner: Runner,
        state: dict[str, Any],
        until: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Learn after each step; `value/td_error` is the mean |δ|."""
        θ, w = actor_parameters(policy), critic_parameters(policy)
        γ, errors = self.gamma, []
        for t in transitions(policy, runner, until, generator):
            v, grad_v = value_and_gradient(policy, w, t.s)
            δ = t.r + γ * next_value(policy, t) - v
            direction = grad_logprob(policy, θ, t)  # before w moves, which may share a trunk with θ
            move(w, self.critic_step_size * δ * grad_v)
            move(θ, self.actor_step_size * state["I"] * δ * direction)
            if self.discount_states:
                state["I"] = 1.0 if t.ended else γ * state["I"]
            errors.append(δ.abs())
        return {"value/td_error": float(torch.stack(errors).mean())}
