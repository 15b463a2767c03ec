"""Base of methods that learn from single transitions of one environment, as they come."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from lmpg.gym.environments.runner import Runner
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.parameters import Parameters, gradient, logprobs
from lmpg.settings.section import Section


@dataclass(frozen=True)
class Transition:
    """One transition: s [F], a ([] or [D]), r, s′ [F], and whether the episode ended with it.

    s_next is s′, an ended episode's final observation included. s_then is observed next: s′, or
    the first observation of the next episode.
    """

    s: Tensor
    a: Tensor
    r: float
    s_next: Tensor
    s_then: Tensor
    terminated: bool
    ended: bool


class IncrementalMethod(Section):
    """A method that learns in the one environment of a runner, within episodes too."""

    incremental: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"critic"})

    @abstractmethod
    def initial_state(self, policy: MLPPolicy, seed: int) -> dict[str, Any]:
        """What the method keeps beside the policy's weights (traces, averages …), at the start."""

    @abstractmethod
    def iterate(
        self,
        policy: MLPPolicy,
        runner: Runner,
        state: dict[str, Any],
        until: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Learn until `runner.num_steps` is exactly `until`; updates the policy and `state` in
        place, and returns metrics."""


def transitions(
    policy: MLPPolicy, runner: Runner, until: int, generator: torch.Generator | None
) -> Iterator[Transition]:
    """Steps the environment until `runner.num_steps` is `until`, with the policy as it is then.

    generator: of the actions; None takes the most likely ones.
    """
    while runner.num_steps < until:
        column = runner.step(policy, _noise(policy, generator))
        seen = runner.features if column.last is None else column.last
        if column.ended[0] and runner.mode is AutoresetMode.NEXT_STEP:
            runner.step(policy, None)  # only resets
        yield Transition(
            s=torch.from_numpy(column.features[0]),
            a=torch.from_numpy(np.asarray(column.actions[0])),
            r=float(column.rewards[0]),
            s_next=torch.from_numpy(seen[0]),
            s_then=torch.from_numpy(runner.features[0]),
            terminated=bool(column.terminated[0]),
            ended=bool(column.ended[0]),
        )


def _noise(policy: MLPPolicy, generator: torch.Generator | None) -> np.ndarray | None:
    return None if generator is None else policy.noise(1, 1, generator)[0]


def grad_logprob(policy: MLPPolicy, θ: Parameters, t: Transition) -> Tensor:
    """∇_θ log π(a | s), [n]."""
    return gradient(logprobs(policy, t.s, t.a), θ)


def value_and_gradient(policy: MLPPolicy, w: Parameters, s: Tensor) -> tuple[Tensor, Tensor]:
    """v̂(s) and ∇_w v̂(s), [m]."""
    v = policy.values(s)
    return v.detach(), gradient(v, w)


@torch.no_grad()
def next_value(policy: MLPPolicy, t: Transition) -> Tensor:
    """v̂(s′), 0 after termination; truncation keeps it."""
    return policy.values(t.s_next) * (not t.terminated)
