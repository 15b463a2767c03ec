"""Finite differences: the gradient of the return, measured by playing with disturbed parameters.

Peters & Schaal (2008), "Reinforcement learning of motor skills with policy gradients", section
2.1: with P disturbances Δθ_i, the rows of ΔΘ, and what they changed on either side,
ΔJ_i = (J(θ + Δθ_i) − J(θ − Δθ_i)) / 2,

    g = (ΔΘᵀΔΘ)⁻¹ ΔΘᵀ ΔJ,   θ ← θ + α g

needs no gradient of the policy, nor any probabilities: it acts deterministically.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from lmpg.functional.least_squares import least_squares
from lmpg.gym.classic.incremental import IncrementalMethod, transitions
from lmpg.gym.environments.runner import Runner
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.parameters import actor_parameters, flat, place


class FiniteDifferences(IncrementalMethod):
    """Each disturbance and its opposite are played for whole episodes, undiscounted."""

    needs = frozenset()
    step_size: float = Field(0.1, gt=0)
    """α."""
    disturbances: int = Field(8, ge=1)
    """P: pairs per gradient. Fewer than parameters give the gradient's projection."""
    size: float = Field(0.1, gt=0)
    """Standard deviation of each component of Δθ."""
    episodes: int = Field(1, ge=1)
    """Whose mean return is J."""
    normalise: bool = False
    """Whether g is scaled to length 1, so that α is how far θ moves."""
    sampled_actions: bool = False
    """Whether actions are drawn from the policy rather than the most likely ones taken."""

    def initial_state(self, policy: MLPPolicy, seed: int) -> dict[str, Any]:
        """θ, ΔΘ [P, n] (drawn with the first step), and the returns that were seen so far."""
        return {"θ": flat(actor_parameters(policy)), "ΔΘ": None, "returns": [], "earned": 0.0}

    def iterate(
        self,
        policy: MLPPolicy,
        runner: Runner,
        state: dict[str, Any],
        until: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Play on; θ moves each time that all disturbances were played."""
        θ, lengths = actor_parameters(policy), []
        self._disturb(policy, state, generator)
        for t in transitions(policy, runner, until, generator if self.sampled_actions else None):
            state["earned"] += t.r
            if t.ended:
                state["returns"].append(state["earned"])
                state["earned"] = 0.0
                if len(state["returns"]) == 2 * self.disturbances * self.episodes:
                    lengths.append(float(self._improve(state)))
                self._disturb(policy, state, generator)
        place(θ, state["θ"])  # what is evaluated and saved; the episode goes on with Δθ
        return {"grad_norm": lengths[-1]} if lengths else {}

    def _disturb(
        self, policy: MLPPolicy, state: dict[str, Any], generator: torch.Generator
    ) -> None:
        """θ + Δθ or θ − Δθ, whichever is next to be played."""
        if state["ΔΘ"] is None:
            shape = self.disturbances, len(state["θ"])
            state["ΔΘ"] = self.size * torch.randn(shape, generator=generator)
        pair, second = divmod(len(state["returns"]) // self.episodes, 2)
        Δθ = state["ΔΘ"][pair]
        place(actor_parameters(policy), state["θ"] + (-Δθ if second else Δθ))

    def _improve(self, state: dict[str, Any]) -> Tensor:
        """One step of θ; |g|."""
        J = torch.tensor(state["returns"]).view(self.disturbances, 2, self.episodes).mean(2)
        g = least_squares(state["ΔΘ"], (J[:, 0] - J[:, 1]) / 2, damping=0.0)
        length = g.norm()
        unit = g / length.clamp(min=1e-12) if self.normalise else g
        state |= {"θ": state["θ"] + self.step_size * unit, "ΔΘ": None, "returns": []}
        return length
