"""An agent, the result of a gym run: a policy and the statistics of its observations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gymnasium import Space

from lmpg.gym.environments.normalisation import ColumnMoments, Normaliser
from lmpg.gym.environments.spaces import Actions, Observations
from lmpg.gym.networks.mlp_policy import MLPPolicy, load_mlp_policy, refused_where_damaged
from lmpg.settings.section import UserError

STATISTICS = "normalisation.json"


@dataclass(frozen=True)
class Agent:
    """Acts on raw features [B, F]: those of `lmpg.gym.environments.spaces.Observations`."""

    policy: MLPPolicy
    normaliser: Normaliser

    def act(self, features: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """One action per row, sampled with `noise`; without it the most likely ones."""
        return self.policy.act(self.normaliser.normalised(features), noise)

    def interface(self, observed: Space, acted: Space, env_id: str) -> tuple[Observations, Actions]:
        """Observations and actions of an environment with these spaces; UserError if the agent was
        trained with others."""
        observations = Observations.of(observed, env_id)
        actions = Actions.of(acted, env_id, self.policy.squash)
        known = (self.policy.num_features, self.policy.action_spec)
        if known != (observations.size, actions.spec):
            raise UserError(
                f"the agent was trained with {known[0]} features and {known[1].words} actions, but "
                f"env.id = {env_id} has {observations.size} and {actions.spec.words}. Take the "
                "environment that it was trained in"
            )
        return observations, actions

    def noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> np.ndarray:
        """The random numbers that `act` uses, [steps, envs, …]."""
        return self.policy.noise(num_steps, num_envs, generator)

    def save(self, folder: Path) -> None:
        """The policy's files, and normalisation.json where observations are normalised."""
        self.policy.save(folder)
        known = self.normaliser.observations
        if known is not None:
            numbers = {"mean": known.mean.tolist(), "var": known.var.tolist(), "count": known.count}
            (folder / STATISTICS).write_text(json.dumps(numbers) + "\n", encoding="utf-8")


def load_agent(folder: str | Path) -> Agent:
    """What `Agent.save` wrote; `folder` may be a run's own, which has it in final/."""
    folder = Path(folder)
    if (folder / "final" / "policy.json").is_file():
        folder = folder / "final"
    policy, path = load_mlp_policy(folder), folder / STATISTICS
    if not path.is_file():
        return Agent(policy, Normaliser())
    with refused_where_damaged(path):
        found = json.loads(path.read_text(encoding="utf-8"))
        mean, var = (np.array(found[name], dtype=float) for name in ("mean", "var"))
        known = ColumnMoments(mean, var, float(found["count"]))
        if not known.mean.shape == known.var.shape == (policy.num_features,):
            raise ValueError(f"moments of {known.mean.shape}, not {policy.num_features} features")
    return Agent(policy, Normaliser(known))
