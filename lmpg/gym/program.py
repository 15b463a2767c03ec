"""A gymnasium run from settings to results: presets, environments, policy, the common loop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmpg.algorithms import algorithm_name
from lmpg.cli.flags import parse
from lmpg.gym.rollouts import GymSource, make_source, num_iterations
from lmpg.gym.settings import GYM_METHODS, GymSettings, TextbookSettings
from lmpg.gym.textbook import Textbook
from lmpg.runs.folder import RunFolder
from lmpg.runs.tracking import Tracker
from lmpg.runtime.processes import Processes
from lmpg.settings.raw import Values, merged, paths_of, read_yaml
from lmpg.settings.section import UserError
from lmpg.training.loop import Loop
from lmpg.training.online import Online
from lmpg.training.run import begin, refusals_leave_nothing, run
from lmpg.training.update import Updater


def train_gym(presets: Path, argv: Sequence[str]) -> Path:
    """Train an agent; settings start from what the folder `presets` has for its environment.

    Returns the run's folder.
    """
    preset = Preset(presets, has_config=any(a.split("=")[0] == "--config" for a in argv))
    settings = parse(GYM_METHODS, argv, preset)
    processes = Processes(cpu=True)
    if processes.count > 1:
        raise UserError(
            f"{processes.count} processes were started, but environments are trained in one: "
            "start it with plain python (several copies step together: env.num_envs)"
        )
    folder = begin(settings, "gym", processes)
    if folder.status == "finished":
        folder.close()
        return folder.path
    with refusals_leave_nothing(folder, processes):
        source = make_source(
            settings.env,
            settings.policy,
            settings.algorithm,
            settings.update,
            settings.evaluation,
            settings.run,
        )
        made = loop(settings, source, folder, processes)
    print("\n".join([*preset.said, *first_lines(source)]), flush=True)
    facts = {"env": settings.env.id, "evaluation": evaluation_words(source)}
    try:
        run(made, folder, "gym", facts)
    finally:
        source.runner.close()
    folder.close()
    return folder.path


def loop(
    settings: GymSettings | TextbookSettings,
    source: GymSource,
    folder: RunFolder,
    processes: Processes,
) -> Loop:
    """The loop over the parts of this run."""
    total_steps = num_iterations(settings.run, settings.update)
    policy, seed = source.policy, settings.run.seed
    parts: dict[str, Any] = {
        "source": source,
        "tracker": Tracker(folder.path, settings.run.trackers, total_steps),
        "folder": folder.path,
        "settings": settings.run,
        "every": settings.evaluation.every,
        "total_steps": total_steps,
        "processes": processes,
        "save_policy": lambda path: source.agent.save(path),
        "stop_reason": source.stop_reason,
    }
    if not isinstance(settings, TextbookSettings):
        updater = Updater(policy, settings.update, total_steps, seed, processes, single_steps=True)
        return Online(policy=policy, algorithm=settings.algorithm, updater=updater, **parts)
    try:
        return Textbook(method=settings.algorithm, **parts)
    except UserError:  # no method for this environment
        parts["tracker"].close()
        raise


def first_lines(source: GymSource) -> list[str]:
    """What is about to be trained, and how it will be judged."""
    envs = source.runner.envs
    form = type(envs.unwrapped).__name__
    parameters = sum(p.numel() for p in source.policy.parameters())
    return [
        f"{source.env.id}: num_envs {envs.num_envs}, {form}, autoreset "
        f"{source.runner.mode.value}; features {source.runner.observations.size}, "
        f"actions {source.policy.action_spec.words}, parameters {parameters:,}",
        f"evaluation: {evaluation_words(source)}",
    ]


def evaluation_words(source: GymSource) -> str:
    """How episodes are played for `before`, `after` and `best`."""
    return (
        f"{source.evaluation.size} episodes of {source.evaluation.actions} actions, in separate "
        "environments"
    )


@dataclass
class Preset:
    """Settings for any environment, and over them those for the method and environment that were
    asked for (METHOD_ENV.yaml), or PPO's.

    A `--config` file stands instead of the latter. `said` tells which file was taken.
    """

    folder: Path
    has_config: bool
    said: list[str] = field(default_factory=list)

    def __call__(self, given: Values) -> Values:
        """The preset for what the user gave."""
        found = read_yaml(str(self.folder / "default.yaml"))
        env_id = (given.get("env") or {}).get("id", found["env"]["id"])
        method = given["algorithm"]["name"]
        own = [self.folder / f"{name}_{file_stem(env_id)}.yaml" for name in (method, "ppo")]
        known = next((path for path in own if path.is_file()), None)
        if not self.has_config and known:
            found = merged(found, read_yaml(str(known)))
            self.said = [f"settings for {env_id} from {known}"]
        elif not self.has_config:
            self.said = [f"no settings for {env_id} in {self.folder}: general ones"]
        return fitting(GYM_METHODS[method], found)


def file_stem(env_id: str) -> str:
    """CartPole-v1 → cartpole, lmpg/Corridor-v0 → corridor."""
    name = re.sub(r"-v\d+$", "", env_id.rpartition("/")[2].rpartition(":")[2])
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


def fitting(settings: type[Any], values: Values) -> Values:
    """Presets are written for PPO; another algorithm takes the settings that it has as well.

    Without ratios it goes over a rollout once: each step is for the policy that acted, which only
    the first pass is. A method that learns step by step lives in a single environment.
    """
    paths = set(paths_of(settings))
    kept = {
        section: {k: v for k, v in fields.items() if f"{section}.{k}" in paths}
        for section, fields in values.items()
    }
    algorithm: Any = settings.model_fields["algorithm"].annotation
    if getattr(algorithm, "online", False):
        return merged(kept, {"env": {"num_envs": 1}})
    its_own = values.get("algorithm", {}).get("name") == algorithm_name(algorithm)
    if "update.epochs" in paths and not its_own and "ratios" not in algorithm().needs:
        return merged(kept, {"update": {"epochs": 1}})
    return kept
