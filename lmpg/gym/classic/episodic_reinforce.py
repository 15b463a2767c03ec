"""REINFORCE from whole episodes, and its off-policy form by importance sampling.

Williams (1992), "Simple statistical gradient-following algorithms": over N episodes

    θ ← θ + α · 1/N Σ_episodes Σ_t γ^t w_t (G_t − b_t) ∇log π(a_t | s_t)

with G_t the return to go Σ_{k≥t} γ^(k−t) r_k, or the whole episode's Σ_k γ^k r_k at every step
(then without the factor γ^t, which it holds already). Used again, episodes are those of an older
policy μ, and the weights are ratios π/μ (Precup, Sutton & Singh 2000): the product over the
episode, which is exact; the product up to each reward, exact too and of less variance; either of
them capped; or the ratio of the step alone, which is biased.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lmpg.functional.advantages import gae
from lmpg.functional.losses import RatioLevel, importance_weights
from lmpg.gym.classic.incremental import IncrementalMethod, transitions
from lmpg.gym.environments.runner import Runner
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.parameters import actor_parameters, gradient, logprobs, move

LEVELS: dict[str, RatioLevel] = {"episode": "sequence", "reward": "decision", "step": "token"}


class EpisodicReinforce(IncrementalMethod):
    """No critic: a truncated episode counts with its rewards so far."""

    needs = frozenset()
    gamma: float = Field(0.99, ge=0, le=1)
    """Discount γ per step."""
    credit: Literal["return_to_go", "whole_return"] = "return_to_go"
    """Weight of each step's ∇log π: the rewards from there on, or the return of the episode."""
    baseline: Literal["none", "average"] = "average"
    """b_t: 0, or the mean credit of the other episodes at step t."""
    discount_states: bool = False
    """Whether returns to go have the factor γ^t, which is usually left out."""
    episodes: int = Field(10, ge=1)
    """N: the actor moves each time that so many have ended."""
    passes: int = Field(1, ge=1)
    """Steps of the actor on each N episodes; from the second on they are another policy's."""
    ratio: Literal["episode", "reward", "step"] = "reward"
    """Of the second pass on: π/μ of the whole episode, up to each reward, or of the step alone."""
    ratio_cap: float | None = Field(None, ge=1)
    """The largest weight; none leaves weights as they are, and the gradient without bias."""
    step_size: float = Field(1e-2, ge=0)
    """α."""

    def initial_state(self, policy: MLPPolicy, seed: int) -> dict[str, Any]:
        """The steps of the present episode, and the episodes before it that wait for it."""
        return {"steps": [], "episodes": []}

    def iterate(
        self,
        policy: MLPPolicy,
        runner: Runner,
        state: dict[str, Any],
        until: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Play on; `grad_norm` is that of the last step of the actor."""
        norm = None
        for t in transitions(policy, runner, until, generator):
            state["steps"].append([t.s, t.a, torch.tensor(t.r)])
            if t.ended:
                state["episodes"].append([torch.stack(x) for x in zip(*state["steps"])])
                state["steps"] = []
            if len(state["episodes"]) == self.episodes:
                norm = self._improve(policy, state["episodes"])
                state["episodes"] = []
        return {} if norm is None else {"grad_norm": norm}

    def _improve(self, policy: MLPPolicy, episodes: list[list[Tensor]]) -> float:
        """`passes` steps of the actor; the length of the last gradient."""
        s_NT, a_NT, r_NT = (pad_sequence(list(x), batch_first=True) for x in zip(*episodes))
        lengths_N1 = torch.tensor([[len(rewards)] for _, _, rewards in episodes])
        mask_NT = torch.arange(r_NT.shape[1]) < lengths_N1
        log_μ_NT, g = logprobs(policy, s_NT, a_NT).detach(), torch.zeros(())
        for _ in range(self.passes):
            log_π_NT = logprobs(policy, s_NT, a_NT)
            credit_NT = self.credits(r_NT, mask_NT, log_π_NT.detach() - log_μ_NT)
            g = gradient((credit_NT * log_π_NT).sum() / len(episodes), actor_parameters(policy))
            move(actor_parameters(policy), self.step_size * g)
        return float(g.norm())

    def credits(self, r_NT: Tensor, mask_NT: Tensor, log_ratios_NT: Tensor) -> Tensor:
        """γ^t w_t (G_t − b_t) of N episodes of up to T steps, [N, T], 0 where there is no step."""
        w_NT = importance_weights(log_ratios_NT, mask_NT, LEVELS[self.ratio], self.ratio_cap)
        b_NT = torch.zeros_like(r_NT)
        if self.baseline == "average":
            b_NT = average_of_others(self._returns(r_NT, mask_NT), mask_NT)
        if self.ratio == "reward":
            credit_NT = self._returns(w_NT * r_NT, mask_NT) - w_NT * b_NT
        else:
            credit_NT = w_NT * (self._returns(r_NT, mask_NT) - b_NT)
        if self.discount_states and self.credit == "return_to_go":
            credit_NT = credit_NT * self.gamma ** torch.arange(r_NT.shape[1], dtype=r_NT.dtype)
        return torch.where(mask_NT, credit_NT, 0)

    def _returns(self, r_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """G_t, [N, T]."""
        if self.credit == "whole_return":
            discounted_NT = r_NT * self.gamma ** torch.arange(r_NT.shape[1], dtype=r_NT.dtype)
            return torch.where(mask_NT, discounted_NT, 0).sum(1, keepdim=True).expand_as(r_NT)
        V_NT, never_NT = torch.zeros_like(r_NT), torch.zeros_like(mask_NT)
        return gae(r_NT, V_NT, V_NT, never_NT, never_NT, mask_NT, self.gamma, lam=1.0)


def average_of_others(returns_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Mean at step t over the other episodes that reach it, [N, T]; 0 where there is none."""
    known_NT = torch.where(mask_NT, returns_NT, 0)
    others_NT = mask_NT.sum(0) - mask_NT.long()
    return (known_NT.sum(0) - known_NT) / others_NT.clamp(min=1)
