"""Gymnasium agents from Python: `from lmpg.gym import train, load, evaluate, record`.

agent = train("CartPole-v1", "ppo", run={"seed": 1})
evaluate(agent, "CartPole-v1").returns.mean()
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium

from lmpg.gym.environments.agent import Agent, load_agent
from lmpg.gym.environments.episodes import MAX_EPISODE_STEPS, Episodes, play
from lmpg.gym.environments.make import make_rendered
from lmpg.gym.environments.own import Env, env_id_of
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.program import train_gym
from lmpg.gym.settings import gym_settings_class, preset_for
from lmpg.runtime.seeding import generator
from lmpg.settings.raw import as_in_yaml, completed, misplaced, with_lists
from lmpg.settings.said_once import say_once
from lmpg.settings.section import UserError

load = load_agent


def train(
    env: Env | Mapping[str, Any] = "CartPole-v1",
    algorithm: str | Mapping[str, Any] = "ppo",
    **settings: Mapping[str, Any],
) -> Agent:
    """Train an agent, as scripts/train_gym.py does with these settings; returns the agent.

    env: an id, an environment's class, a function that makes one, an instance (of which there will
    be copies), or the section `env`, whose `id` may be any of these. algorithm: a name, or its
    section. settings: further sections, as in train(update={"learning_rate": 1e-3},
    run={"output_dir": "runs/mine"}). Bad ones raise UserError.
    """
    section = dict(env) if isinstance(env, Mapping) else {"id": env}
    if "id" in section:
        section["id"] = env_id_of(section["id"])
    if isinstance(algorithm, str):
        algorithm = {"name": algorithm}
    if not isinstance(algorithm, Mapping):
        raise UserError(
            f"algorithm = {algorithm!r}: expected a name, as 'ppo', or a section, as "
            "{'name': 'ppo', 'clip': 0.1}"
        )
    given = as_in_yaml(
        {
            "env": section,
            "algorithm": algorithm,
            **settings,
        }
    )
    kind = gym_settings_class(given["algorithm"].pop("name", None))
    if problems := misplaced(kind, given, "train"):
        raise UserError("\n".join(problems))
    preset, note = preset_for(kind, given)
    return load(train_gym(completed(kind, preset, with_lists(kind, given)), note))


def evaluate(
    agent: Agent,
    env: Env,
    episodes: int = 100,
    deterministic: bool = True,
    seed: int = 0,
    **kwargs: Any,
) -> Episodes:
    """Undiscounted returns and lengths of `episodes` episodes, [episodes] each.

    deterministic: the most likely actions; else sampled ones. kwargs: of the environment.
    """
    drawn = None if deterministic else generator(seed, "evaluate")
    return play(agent, EnvSettings(id=env_id_of(env), kwargs=kwargs), episodes, seed, drawn)


def record(agent: Agent, env: Env, path: str | Path, seed: int = 0, **kwargs: Any) -> float:
    """Plays one episode of the most likely actions into the video `path` (.mp4); its return.

    Needs the extra `video`, and an environment that can be rendered; else UserError.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise UserError(f"path = {path}: videos are written as .mp4")
    env_id = env_id_of(env)
    world = make_rendered(env_id, kwargs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        films = Path(folder) / "films"
        try:
            filmed = gymnasium.wrappers.RecordVideo(world, str(films), disable_logger=True)
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"{error}; install the extra: pip install 'lmpg[video]'") from error
        with filmed:
            total = _played(agent, filmed, env_id, seed)
        next(films.glob("*.mp4")).replace(path)
    return total


def _played(agent: Agent, world: gymnasium.Env, env: str, seed: int) -> float:
    observations, actions = agent.interface(world.observation_space, world.action_space, env)
    raw, _ = world.reset(seed=seed)
    total, steps, done = 0.0, 0, False
    while not done and steps < MAX_EPISODE_STEPS:
        acts = actions.for_env(agent.act(observations.features_of_each([raw]), None))
        raw, reward, terminated, truncated, _ = world.step(acts[0])
        total, steps, done = total + float(reward), steps + 1, terminated or truncated
    if not done:
        say_once(f"env.id = {env}: the episode was cut at {MAX_EPISODE_STEPS:,} steps")
    return total
