"""Base of methods that learn from whole rollouts: the actor by one step, the critic by a fit."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lmpg.functional.advantages import explained_variance
from lmpg.functional.losses import squared_error
from lmpg.functional.masking import WHITEN_EPS, whitened
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.parameters import critic_parameters
from lmpg.settings.section import Section
from lmpg.types import Rollout


@dataclass(frozen=True)
class Steps:
    """The N transitions of a rollout, side by side; returns are advantage + V, never whitened."""

    observations: Tensor
    actions: Tensor
    advantages: Tensor
    returns: Tensor
    old_logprobs: Tensor
    old_values: Tensor

    @classmethod
    def of(cls, rollout: Rollout, gamma: float, lam: float, whiten: bool) -> Steps:
        """From a rollout, with GAE's advantages: truncation bootstraps, termination does not."""
        advantages_BT = rollout.gae(rollout.rewards_BT, gamma, lam)
        mask_BT, values_BT = rollout.mask_BT, rollout.values_BT
        assert values_BT is not None
        learned_BT = whitened(advantages_BT, mask_BT, WHITEN_EPS) if whiten else advantages_BT
        return cls(
            observations=rollout.inputs["observations"][mask_BT],
            actions=rollout.inputs["actions"][mask_BT],
            advantages=learned_BT[mask_BT],
            returns=(advantages_BT + values_BT)[mask_BT],
            old_logprobs=rollout.logprobs_BT[mask_BT],
            old_values=values_BT[mask_BT],
        )


class BatchMethod(Section):
    """A method that takes one step of the actor per rollout (`improve`), then fits the critic.

    States are weighted as they are visited, without the factor γ^t.
    """

    incremental: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"critic"})
    gamma: float = Field(0.99, ge=0, le=1)
    """Discount γ per step."""
    lam: float = Field(0.95, ge=0, le=1)
    """λ of the advantages: 0 trusts the critic, 1 the sampled returns."""
    whiten_advantages: bool = True
    """Whether each rollout's advantages are brought to mean 0 and standard deviation 1."""
    critic_learning_rate: float = Field(1e-3, gt=0)
    """Of the critic's Adam, which is the only optimizer."""
    critic_epochs: int = Field(10, ge=0)
    """Passes over each rollout that fit the critic to the returns."""
    critic_minibatch_size: int = Field(64, ge=1)
    """Steps per update of the critic."""

    @abstractmethod
    def improve(self, policy: MLPPolicy, steps: Steps) -> dict[str, float]:
        """Move the actor's parameters."""

    def initial_state(self, policy: MLPPolicy, seed: int) -> dict[str, Any]:
        """Nothing yet: Adam's moments of the critic come with its first step."""
        return {}

    def update(
        self, policy: MLPPolicy, rollout: Rollout, state: dict[str, Any], generator: torch.Generator
    ) -> dict[str, float]:
        """Learn once from `rollout`; the returns are those of the critic before it is fitted."""
        steps = Steps.of(rollout, self.gamma, self.lam, self.whiten_advantages)
        with torch.no_grad():
            outputs = policy.actor(steps.observations)
            _, entropy = policy.distribution.logprobs_and_entropy(outputs, steps.actions)
        found = {"policy/entropy": float(entropy.mean())} | self.improve(policy, steps)
        return found | self._fit_critic(policy, steps, state, generator)

    def _fit_critic(
        self, policy: MLPPolicy, steps: Steps, state: dict[str, Any], generator: torch.Generator
    ) -> dict[str, float]:
        w = critic_parameters(policy)
        adam = torch.optim.Adam(w, lr=self.critic_learning_rate, fused=True)
        adam.load_state_dict({**adam.state_dict(), "state": state.get("critic", {})})
        losses = []
        for rows in self._minibatches(len(steps.returns), generator):
            values = policy.values(steps.observations.index_select(0, rows))
            loss = squared_error(values, steps.returns.index_select(0, rows)).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.detach())
        state["critic"] = adam.state_dict()["state"]
        everything = torch.ones_like(steps.returns, dtype=torch.bool)
        explained = explained_variance(steps.old_values, steps.returns, everything)
        mean_loss = torch.stack(losses).mean() if losses else torch.nan
        return {"loss/value": float(mean_loss), "value/explained_variance": float(explained)}

    def _minibatches(self, num_steps: int, generator: torch.Generator):
        """Rows of each minibatch of all epochs, shuffled anew in each, none left out."""
        for _ in range(self.critic_epochs):
            order = torch.randperm(num_steps, generator=generator)
            yield from order.tensor_split(max(1, round(num_steps / self.critic_minibatch_size)))
