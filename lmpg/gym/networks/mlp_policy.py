"""The policy of gymnasium runs: a small MLP as actor and, for algorithms that need it, a critic."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmpg.gym.networks.distributions import (
    ActionDistribution,
    Categorical,
    DiagonalGaussian,
    MultiDiscrete,
    SquashedGaussian,
)
from lmpg.gym.networks.flat_mlp import FlatMLP
from lmpg.gym.networks.numpy_backward import NumpyBackward, evaluate_in_numpy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.settings.section import UserError
from lmpg.types import Evaluation

Backward = Callable[..., None]
"""Takes dL/dlogprobs, dL/dentropy and dL/dvalues, and adds to the `.grad` of the parameters."""


@dataclass(frozen=True)
class ActionSpec:
    """Discrete: `size` choices. Continuous: `size` real numbers. Multi-discrete: `size` numbers
    of which each has as many choices as `choices` says."""

    kind: Literal["discrete", "continuous", "multi-discrete"]
    size: int
    choices: tuple[int, ...] = ()

    @property
    def words(self) -> str:
        """For messages, such as `2 discrete`."""
        return f"{' × '.join(map(str, self.choices)) or self.size} {self.kind}"


class MLPPolicy(nn.Module):
    """Acts in numpy, whose small matrix products cost a tenth of torch's; learns in torch."""

    def __init__(
        self, num_features: int, actions: ActionSpec, settings: PolicySettings, critic: bool
    ) -> None:
        super().__init__()
        self.num_features, self.action_spec, self.settings = num_features, actions, settings
        self.distribution = distribution_of(actions, settings)
        self.shared, self.squash = settings.trunk == "shared", settings.squash
        if self.shared and not critic:
            raise UserError(
                "policy.trunk = shared, but the algorithm has no critic that could share it. Leave "
                "policy.trunk out, or take an algorithm with a critic, as ppo"
            )
        sizes = (num_features, *settings.hidden_sizes)
        self.actor = FlatMLP((*sizes, self.distribution.num_outputs), settings.activation)
        read = sizes[-1:] if self.shared else sizes
        self.critic = FlatMLP((*read, 1), settings.activation) if critic else None

    def initialise(self, generator: torch.Generator) -> None:
        """Orthogonal weights of gain √2, at the actor's output 0.01, the critic's 1; no biases."""
        self.actor.initialise(0.01, generator)
        if self.critic is not None:
            self.critic.initialise(1.0, generator)

    def differentiated(self, inputs: dict[str, Tensor]) -> tuple[Evaluation, Backward] | None:
        """The `evaluate` of these inputs without a graph, and a function that back-propagates its
        gradients into the parameters; None where only autograd can."""
        observations, actions = inputs["observations"], inputs["actions"]
        if not self._suits_numpy(observations):
            return None
        kept = NumpyBackward(self, observations, actions)
        return Evaluation(*kept.tensors), kept.backward

    def _suits_numpy(self, observations: Tensor) -> bool:
        known = self.distribution.has_closed_form and isinstance(self.actor, FlatMLP)
        return known and self.actor.suits_numpy(observations)

    def evaluate(self, inputs: dict[str, Tensor]) -> Evaluation:
        """Log-probs, entropy and values of the `actions` at `observations` [B, T, features]."""
        observations, actions = inputs["observations"], inputs["actions"]
        if self._suits_numpy(observations):
            return evaluate_in_numpy(self, observations, actions)
        if self.shared:
            observations = self.actor.hidden(observations)
        outputs = self.actor.last(observations) if self.shared else self.actor(observations)
        values_BT = None if self.critic is None else self.critic(observations).squeeze(-1)
        logprobs_BT, entropy_BT = self.distribution.logprobs_and_entropy(outputs, actions)
        return Evaluation(logprobs_BT, entropy_BT, values_BT)

    def values(self, observations: Tensor) -> Tensor:
        """V(s), shaped like `observations` without its last dimension."""
        if self.critic is None:
            raise ValueError("this policy was made without a critic")
        read = self.actor.hidden(observations) if self.shared else observations
        return self.critic(read).squeeze(-1)

    def act(self, features: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """Actions for features [B, F], sampled with `noise`; without it the most likely ones."""
        outputs = self.actor.outputs(features)
        if noise is None:
            return self.distribution.mode(outputs)
        return self.distribution.sample(outputs, noise)

    def noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> np.ndarray:
        """The random numbers that `act` uses, [steps, envs, …]."""
        return self.distribution.noise(num_steps, num_envs, generator)

    def trainable_state(self) -> dict[str, Tensor]:
        """Every tensor the optimizer changes, by name."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Strict: missing, unexpected and misshapen tensors are named."""
        self.load_state_dict(state, strict=True)

    def save(self, folder: Path) -> None:
        """policy.safetensors and policy.json; `load_mlp_policy` reads them back."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.contiguous() for k, v in self.trainable_state().items()}
        save_file(tensors, folder / "policy.safetensors")
        description = {
            "num_features": self.num_features,
            "actions": asdict(self.action_spec),
            "policy": self.settings.model_dump(),
            "critic": self.critic is not None,
        }
        (folder / "policy.json").write_text(json.dumps(description, indent=2) + "\n")


def load_mlp_policy(folder: str | Path) -> MLPPolicy:
    """The policy that `MLPPolicy.save` wrote, weights and all."""
    path = Path(folder) / "policy.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no policy.json; expected the final/ folder of a gym run")
    with refused_where_damaged(path):
        described = json.loads(path.read_text())
        actions = described["actions"]
        policy = MLPPolicy(
            described["num_features"],
            ActionSpec(**{**actions, "choices": tuple(actions.get("choices", ()))}),
            PolicySettings(**described["policy"]),
            described["critic"],
        )
    weights = path.with_name("policy.safetensors")
    with refused_where_damaged(weights):
        policy.load_trainable_state(load_file(weights))
    return policy


@contextmanager
def refused_where_damaged(path: Path) -> Iterator[None]:
    """Turns what a file of an agent raises that is missing, cut or another's into a UserError."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{path} is damaged, or not of this agent ({type(error).__name__}: {why:.200}), "
            "expected the file that the gym run wrote; copy the run's final/ folder again"
        ) from None


def distribution_of(actions: ActionSpec, settings: PolicySettings) -> ActionDistribution:
    """The distribution over such actions that the actor's outputs parametrise."""
    if actions.kind == "discrete":
        return Categorical(actions.size)
    if actions.kind == "multi-discrete":
        return MultiDiscrete(actions.choices)
    kind = SquashedGaussian if settings.squash else DiagonalGaussian
    return kind(actions.size, settings.initial_log_std, fixed=settings.log_std == "fixed")
