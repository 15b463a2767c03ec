"""Q actor-critic: a linear critic of actions, learned by SARSA, weighs the score.

Sutton, McAllester, Singh & Mansour (2000), "Policy gradient methods for reinforcement learning
with function approximation", with the critic of Sutton & Barto (2018), section 10.1, semi-gradient
SARSA; the name is that of D. Silver's lectures (2015), part 7:

    δ ← R + γ Q_w(S′, A′) − Q_w(S, A)             (Q_w(S′, ·) = 0 if S′ is terminal)
    θ ← θ + α_θ Q_w(S, A) ∇log π(A | S, θ)        w ← w + α_w δ ∇Q_w(S, A)

with Q_w(s, a) = w_aᵀ(s, 1). A′ is the action that is really taken in S′, so a step is learned
from one step later; where an episode was truncated it is E_{A′∼π} Q_w(S′, A′) instead.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from lmpg.gym.classic.incremental import (
    IncrementalMethod,
    Transition,
    grad_logprob,
    transitions,
)
from lmpg.gym.environments.runner import Runner
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.parameters import Parameters, actor_parameters, move
from lmpg.settings.section import UserError


class QAC(IncrementalMethod):
    """For discrete actions. States are weighted as they are visited, without the factor γ^t."""

    needs = frozenset()
    gamma: float = Field(0.99, ge=0, le=1)
    """Discount γ per step."""
    actor_step_size: float = Field(1e-3, ge=0)
    """α_θ."""
    critic_step_size: float = Field(1e-2, ge=0)
    """α_w."""
    baseline: bool = False
    """Whether Q_w(S, A) counts less E_{a∼π} Q_w(S, a), which changes no expectation."""

    def initial_state(self, policy: MLPPolicy, seed: int) -> dict[str, Any]:
        """w [actions, features + 1], and the step that waits for the next one's action."""
        if policy.action_spec.kind != "discrete":
            raise UserError(
                "algorithm.name = qac has one critic per action, but the environment's actions are "
                f"{policy.action_spec.kind}. Take td_actor_critic or td_lambda"
            )
        return {"w": torch.zeros(policy.action_spec.size, policy.num_features + 1), "waiting": None}

    def iterate(
        self,
        policy: MLPPolicy,
        runner: Runner,
        state: dict[str, Any],
        until: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Learn after each step; `value/td_error` is the mean |δ|."""
        θ, errors = actor_parameters(policy), []
        for t in transitions(policy, runner, until, generator):
            if state["waiting"] is not None:
                Q_next = _Q(state["w"], t.s)[t.a]
                errors.append(self._learn(policy, θ, Transition(**state["waiting"]), Q_next, state))
            state["waiting"] = None if t.ended else vars(t)
            if t.ended:
                π = policy.actor(t.s_next).softmax(-1).detach()
                Q_next = (π @ _Q(state["w"], t.s_next)) * (not t.terminated)
                errors.append(self._learn(policy, θ, t, Q_next, state))
        return {"value/td_error": float(torch.stack(errors).mean())} if errors else {}

    def _learn(
        self, policy: MLPPolicy, θ: Parameters, t: Transition, Q_next: Tensor, state: dict[str, Any]
    ) -> Tensor:
        """From one step; |δ|."""
        Q = _Q(state["w"], t.s)
        π = policy.actor(t.s).softmax(-1).detach()
        worth = Q[t.a] - π @ Q if self.baseline else Q[t.a]
        δ = t.r + self.gamma * Q_next - Q[t.a]
        move(θ, self.actor_step_size * worth * grad_logprob(policy, θ, t))
        state["w"][t.a] += self.critic_step_size * δ * _features(t.s)
        return δ.abs()


def _Q(w: Tensor, s: Tensor) -> Tensor:
    """Of all actions, [A]."""
    return w @ _features(s)


def _features(s: Tensor) -> Tensor:
    return torch.cat([s, torch.ones(1)])
