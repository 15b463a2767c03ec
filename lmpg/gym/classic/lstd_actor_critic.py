"""An actor with a least-squares critic, which needs no step size.

Boyan (2002), "Technical update: least-squares temporal difference learning", LSTD(λ), discounted
(as LSTD is in Bradtke & Barto 1996), with the features φ(s) = (s, 1):

    z ← γλz + φ(S)                                (0 when an episode starts)
    A ← A + z (φ(S) − γφ(S′))ᵀ,  b ← b + z R      (φ(S′) = 0 if S′ is terminal)

and v̂(s) = wᵀφ(s) with Aw = b. Then the actor moves once, by the mean over the iteration:

    θ ← θ + α mean(δ ∇log π(A | S)),   δ = R + γ v̂(S′) − v̂(S)
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from lmpg.gym.classic.incremental import IncrementalMethod, grad_logprob, transitions
from lmpg.gym.environments.runner import Runner
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.parameters import actor_parameters, move


class LstdActorCritic(IncrementalMethod):
    """States are weighted as they are visited, without the factor γ^t."""

    needs = frozenset()
    gamma: float = Field(0.99, ge=0, le=1)
    """Discount γ per step."""
    lam: float = Field(0.0, ge=0, le=1)
    """λ of the critic."""
    step_size: float = Field(0.1, ge=0)
    """α of the actor, once per iteration (update.rollout_size steps)."""
    memory: float = Field(0.0, ge=0, lt=1)
    """How much A and b of earlier iterations, of older policies, count in the next."""
    ridge: float = Field(1e-6, gt=0)
    """Times the identity, added to A per step, so that it can be inverted."""

    def initial_state(self, policy: MLPPolicy, seed: int) -> dict[str, Any]:
        """A [m, m], b, z and w [m] in double precision, m = features + 1."""
        m = policy.num_features + 1
        vectors = {name: torch.zeros(m, dtype=torch.float64) for name in ("b", "z", "w")}
        return {"A": torch.zeros(m, m, dtype=torch.float64), **vectors}

    def iterate(
        self,
        policy: MLPPolicy,
        runner: Runner,
        state: dict[str, Any],
        until: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """One step of the actor; `value/td_error` is the mean |δ|."""
        A, b, z = self.memory * state["A"], self.memory * state["b"], state["z"]
        θ, seen = actor_parameters(policy), []
        for t in transitions(policy, runner, until, generator):
            φ, φ_next = _features(t.s), _features(t.s_next) * (not t.terminated)
            z = self.gamma * self.lam * z + φ
            A += torch.outer(z, φ - self.gamma * φ_next)
            b += z * t.r
            z = torch.zeros_like(z) if t.ended else z
            seen.append((φ, t.r, φ_next, grad_logprob(policy, θ, t)))
        w = torch.linalg.solve(A + self.ridge * len(seen) * torch.eye(len(b)), b)
        state |= {"A": A, "b": b, "z": z, "w": w}
        φs, rs, φs_next, ψs = (torch.stack([torch.as_tensor(x) for x in c]) for c in zip(*seen))
        δs = (rs + self.gamma * φs_next @ w - φs @ w).float()
        move(θ, self.step_size * (δs[:, None] * ψs).mean(0))
        return {"value/td_error": float(δs.abs().mean())}


def _features(s: Tensor) -> Tensor:
    return torch.cat([s.double(), torch.ones(1, dtype=torch.float64)])
