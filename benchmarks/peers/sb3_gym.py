"""Stable-Baselines3's PPO, timed as `gym_steps.py` times lmpg; runs in an environment of its own.

    python benchmarks/peers/sb3_gym.py steps zoo --iterations 40
    python benchmarks/peers/sb3_gym.py to_475 default --seed 3

zoo: CartPole-v1 with the RL Zoo's settings; default: CartPole-v1 with its own; mujoco:
HalfCheetah-v5 with its own, observations and rewards normalised.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lockstep import Turn

ENOUGH, IN_A_ROW, EVERY = 475, 3, 2048


def model(case: str, seed: int) -> PPO:
    """The trainer of a case."""
    settings: dict[str, Any] = {"seed": seed, "device": "cpu"}
    if case == "mujoco":
        env = VecNormalize(make_vec_env("HalfCheetah-v5", n_envs=1, seed=seed), gamma=0.99)
    elif case == "default":
        env = make_vec_env("CartPole-v1", n_envs=1, seed=seed)
    else:
        env = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
        settings |= {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gae_lambda": 0.8}
        settings |= {"gamma": 0.98, "ent_coef": 0.0}
        settings["learning_rate"] = LinearSchedule(1e-3, 0.0, 1.0)
        settings["clip_range"] = LinearSchedule(0.2, 0.0, 1.0)
    return PPO("MlpPolicy", env, **settings)


class TakeTurns(BaseCallback):
    """Waits before each rollout, when the update before it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = Turn()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            self.turn(steps=self.num_timesteps)

    def _on_training_end(self) -> None:
        self.turn(steps=self.num_timesteps)


class UntilGood(BaseCallback):
    """Evaluates at the end of the rollout that completes 2,048 more steps, outside of the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.spent, self.since = 0.0, 0.0
        self.next, self.means = EVERY, []
        self.found: dict[str, Any] | None = None

    def _on_training_start(self) -> None:
        self.since = time.perf_counter()

    def _on_step(self) -> bool:
        return self.found is None

    def _on_rollout_start(self) -> None:
        self._look()

    def _on_training_end(self) -> None:
        self._look()

    def _look(self) -> None:
        if self.num_timesteps < self.next or self.found:
            return
        self.spent += time.perf_counter() - self.since
        self.next = self.num_timesteps // EVERY * EVERY + EVERY
        self.means.append(mean_return(self.model))
        newest = self.means[-IN_A_ROW:]
        if len(newest) == IN_A_ROW and min(newest) >= ENOUGH:
            self.found = {"seconds": self.spent, "steps": self.num_timesteps}
        self.since = time.perf_counter()


def mean_return(trained: PPO, episodes: int = 100) -> float:
    """Mean return of the most likely actions, the first episode of as many environments."""
    envs = CartPoleVectorEnv(num_envs=episodes)
    observations, _ = envs.reset(seed=12345)
    alive, returns = np.ones(episodes, bool), np.zeros(episodes)
    while alive.any():
        actions, _ = trained.predict(observations, deterministic=True)
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        returns += rewards * alive
        alive &= ~(terminated | truncated)
    return float(returns.mean())


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("steps", "to_475"))
    parser.add_argument("case", choices=("zoo", "default", "mujoco"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--limit", type=int, default=100_000, help="steps of to_475 at most")
    given = parser.parse_args()
    torch.set_num_threads(1)
    trained = model(given.case, given.seed)
    if given.what == "steps":
        size = trained.n_steps * trained.n_envs
        trained.learn(given.iterations * size, callback=TakeTurns())
        return
    callback = UntilGood()
    trained.learn(given.limit, callback=callback)
    found = callback.found or {"seconds": None, "steps": trained.num_timesteps}
    print(json.dumps({"found": found | {"means": callback.means}}), flush=True)


if __name__ == "__main__":
    main()
