"""The average-reward actor-critic, for a life that goes on.

Sutton & Barto (2018), section 13.6, "Actor–Critic with Eligibility Traces (continuing)":

    δ ← R − R̄ + v̂(S′, w) − v̂(S, w)               R̄ ← R̄ + α_R δ
    z_w ← λ_w z_w + ∇v̂(S, w)                      z_θ ← λ_θ z_θ + ∇log π(A | S, θ)
    w ← w + α_w δ z_w                             θ ← θ + α_θ δ z_θ

Nothing is discounted. Where an environment ends its episodes, S′ is the state that the next one
starts in: the reset belongs to the life. Only differences of v̂ mean something.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from lmpg.gym.classic.incremental import (
    IncrementalMethod,
    grad_logprob,
    transitions,
    value_and_gradient,
)
from lmpg.gym.environments.runner import Runner
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.parameters import actor_parameters, critic_parameters, flat, move


class AverageReward(IncrementalMethod):
    """What is maximised is r(π), the reward per step."""

    gamma: ClassVar[float] = 0.0
    """By which normalised rewards are scaled: a life without end has no return."""
    actor_lam: float = Field(0.9, ge=0, le=1)
    """λ_θ."""
    critic_lam: float = Field(0.9, ge=0, le=1)
    """λ_w."""
    actor_step_size: float = Field(3e-4, ge=0)
    """α_θ."""
    critic_step_size: float = Field(2e-3, ge=0)
    """α_w."""
    average_step_size: float = Field(1e-3, ge=0)
    """α_R."""

    def initial_state(self, policy: MLPPolicy, seed: int) -> dict[str, Any]:
        """Both traces, and R̄."""
        z_θ = torch.zeros_like(flat(actor_parameters(policy)))
        z_w = torch.zeros_like(flat(critic_parameters(policy)))
        return {"z_θ": z_θ, "z_w": z_w, "average": torch.zeros(())}

    def iterate(
        self,
        policy: MLPPolicy,
        runner: Runner,
        state: dict[str, Any],
        until: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Learn after each step; `value/average_reward` is R̄."""
        θ, w = actor_parameters(policy), critic_parameters(policy)
        for t in transitions(policy, runner, until, generator):
            v, grad_v = value_and_gradient(policy, w, t.s)
            with torch.no_grad():
                δ = t.r - state["average"] + policy.values(t.s_then) - v
            state["z_w"] = self.critic_lam * state["z_w"] + grad_v
            state["z_θ"] = self.actor_lam * state["z_θ"] + grad_logprob(policy, θ, t)
            state["average"] = state["average"] + self.average_step_size * δ
            move(w, self.critic_step_size * δ * state["z_w"])
            move(θ, self.actor_step_size * δ * state["z_θ"])
        return {"value/average_reward": float(state["average"])}
