"""Actor-critic with eligibility traces: a TD error is also for the steps that led to it.

Sutton & Barto (2018), section 13.5, "Actor–Critic with Eligibility Traces (episodic)":

    z_w ← γλ_w z_w + ∇v̂(S, w)                    z_θ ← γλ_θ z_θ + I ∇log π(A | S, θ)
    δ ← R + γ v̂(S′, w) − v̂(S, w)                 (v̂(S′, w) = 0 if S′ is terminal)
    w ← w + α_w δ z_w                             θ ← θ + α_θ δ z_θ,  I ← γI

Both traces are 0 when an episode starts. Each is made of its own gradient: the actor's of ∇log π.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from lmpg.functional.traces import Trace, traced
from lmpg.gym.classic.incremental import (
    IncrementalMethod,
    grad_logprob,
    next_value,
    transitions,
    value_and_gradient,
)
from lmpg.gym.environments.runner import Runner
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.parameters import actor_parameters, critic_parameters, flat, move


class TdLambda(IncrementalMethod):
    """Online, or with weights that stand still for an iteration, which may end within episodes."""

    gamma: float = Field(0.99, ge=0, le=1)
    """Discount γ per step."""
    actor_lam: float = Field(0.9, ge=0, le=1)
    """λ_θ."""
    critic_lam: float = Field(0.9, ge=0, le=1)
    """λ_w; 0 is the one-step actor-critic, 1 follows the sampled returns."""
    trace: Trace = "accumulating"
    """The critic's; replacing needs features that are mostly 0. The actor's accumulates."""
    actor_step_size: float = Field(3e-4, ge=0)
    """α_θ."""
    critic_step_size: float = Field(2e-3, ge=0)
    """α_w."""
    offline: bool = False
    """Whether the changes are summed and made at the end of each iteration (update.rollout_size
    steps): traces and episodes go on over it."""
    discount_states: bool = False
    """Whether the actor has the book's factor I = γ^t, without which late states count as much
    as early ones, as is usual."""

    def initial_state(self, policy: MLPPolicy, seed: int) -> dict[str, Any]:
        """Both traces, and I, the discount so far."""
        z_θ = torch.zeros_like(flat(actor_parameters(policy)))
        return {"z_θ": z_θ, "z_w": torch.zeros_like(flat(critic_parameters(policy))), "I": 1.0}

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
        Δθ, Δw = torch.zeros_like(state["z_θ"]), torch.zeros_like(state["z_w"])
        γ, errors = self.gamma, []
        for t in transitions(policy, runner, until, generator):
            v, grad_v = value_and_gradient(policy, w, t.s)
            δ = t.r + γ * next_value(policy, t) - v
            z_w = traced(state["z_w"], grad_v, γ * self.critic_lam, self.trace)
            z_θ = γ * self.actor_lam * state["z_θ"] + state["I"] * grad_logprob(policy, θ, t)
            Δw += self.critic_step_size * δ * z_w
            Δθ += self.actor_step_size * δ * z_θ
            if not self.offline:
                _make(w, Δw)
                _make(θ, Δθ)
            state |= {"z_w": z_w, "z_θ": z_θ}
            if self.discount_states:
                state["I"] *= γ
            if t.ended:
                state |= self.initial_state(policy, 0)
            errors.append(δ.abs())
        _make(w, Δw)
        _make(θ, Δθ)
        return {"value/td_error": float(torch.stack(errors).mean())}


def _make(parameters: list, change: torch.Tensor) -> None:
    """Move the parameters by `change`, of which nothing is left."""
    move(parameters, change)
    change.zero_()
