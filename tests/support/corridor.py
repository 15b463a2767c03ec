"""The short corridor of Sutton & Barto's example 13.1, for an actor that cannot tell its cells."""

from __future__ import annotations

import contextlib

import gymnasium
import torch
from torch import nn

from lmpg.gym.environments.make import make_envs
from lmpg.gym.environments.runner import Runner
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.networks.mlp_policy import ActionSpec, MLPPolicy
from lmpg.gym.networks.settings import PolicySettings

BEST_P, BEST_V = 0.585786, -11.6569  # G16


class Corridor(gymnasium.Env):
    """Three cells and the goal; left and right are swapped in the second cell. −1 per step."""

    observation_space = gymnasium.spaces.Discrete(3)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = 0
        return self.cell, {}

    def step(self, action):
        step = 1 if (action == 1) != (self.cell == 1) else -1
        self.cell = max(0, self.cell + step)
        return min(self.cell, 2), -1.0, self.cell == 3, False, {}


class Scripted(gymnasium.Env):
    """Shows `states` and pays `rewards` whatever is done; terminated after the last, or not."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, states, rewards, terminal, num_states):
        self.observation_space = gymnasium.spaces.Discrete(num_states)
        self.states, self.rewards, self.terminal = states, rewards, terminal

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.states[0], {}

    def step(self, action):
        self.t += 1
        over = self.t == len(self.rewards)
        seen = self.states[min(self.t, len(self.states) - 1)]
        return (
            seen,
            self.rewards[self.t - 1],
            over and self.terminal,
            over and not self.terminal,
            {},
        )


class Chain(gymnasium.Env):
    """One state; action 1 ends the episode with reward 1, action 0 stays without (G13)."""

    observation_space = gymnasium.spaces.Discrete(1)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 0, float(action), bool(action), False, {}


class TwoRooms(gymnasium.Env):
    """Action 1 moves to the other room, 0 stays; only staying in room 1 pays, 1. Never ends."""

    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.room = 0
        return self.room, {}

    def step(self, action):
        paid = float(self.room == 1 and action == 0)
        self.room ^= int(action)
        return self.room, paid, False, False, {}


@contextlib.contextmanager
def living(kind: type[gymnasium.Env], num_envs: int = 1, seed: int = 0, **kwargs):
    """A runner in copies of an environment of `kind`."""
    gymnasium.register("LmpgTested-v0", kind)
    try:
        settings = EnvSettings(id="LmpgTested-v0", num_envs=num_envs, kwargs=kwargs)
        runner = Runner(make_envs(settings, num_envs), settings.id, seed)
        yield runner
        runner.close()
    finally:
        del gymnasium.registry["LmpgTested-v0"]


class Tabular(MLPPolicy):
    """A number per state, and per action of each; all 0 at first."""

    def __init__(self, num_states: int, actions: ActionSpec, critic: bool, aliased: bool) -> None:
        super().__init__(num_states, actions, PolicySettings(hidden_sizes=()), critic)
        num_outputs = self.distribution.num_outputs
        self.actor = Alike(num_outputs) if aliased else nn.Linear(num_states, num_outputs, False)
        self.critic = nn.Linear(num_states, 1, bias=False) if critic else None
        for p in (*self.actor.parameters(), *(self.critic.parameters() if critic else ())):
            nn.init.zeros_(p)

    @torch.no_grad()
    def act(self, features, noise):
        outputs = self.actor(torch.from_numpy(features)).numpy()
        return self.distribution.mode(outputs) if noise is None else self.distribution.sample(
            outputs, noise
        )  # fmt: skip


class Alike(nn.Module):
    """The same outputs whatever is seen."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x):
        return self.bias.expand(*x.shape[:-1], -1)


def tabular(runner: Runner, critic: bool = True, aliased: bool = False) -> Tabular:
    """For what `runner` shows; `aliased`: its actor takes all states for the same."""
    return Tabular(runner.observations.size, runner.actions.spec, critic, aliased)


@torch.no_grad()
def p_right(policy: MLPPolicy) -> float:
    """Probability of action 1 in the first state."""
    first = torch.eye(policy.num_features)[0]
    return float(policy.actor(first).softmax(-1)[1])
