"""A gymnasium run from settings to results: makes its parts and runs the loop over them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lmpg.gym.environments.make import find_spec
from lmpg.gym.rollouts import GymSource, make_source, num_iterations
from lmpg.gym.settings import GymSettings, TextbookSettings
from lmpg.gym.textbook import Textbook
from lmpg.runs.fingerprints import Inputs, source_files
from lmpg.runs.folder import RunFolder
from lmpg.runs.tracking import Tracker
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError
from lmpg.training.loop import Loop
from lmpg.training.online import Online
from lmpg.training.run import begin, nothing_left_before_the_first_step, run
from lmpg.training.update import Updater


def train_gym(settings: GymSettings | TextbookSettings, note: str = "") -> Path:
    """Train an agent from settings to a finished run; returns the run's folder.

    note: a line to print before the first, such as where the settings come from.
    """
    processes = Processes(cpu=True)
    if processes.count > 1:
        raise UserError(
            f"{processes.count} processes were started, but environments are trained in one: "
            "start it with plain python (several copies step together: env.num_envs)"
        )
    processes.launch.refuse_what_is_not(None, "an agent")
    folder = begin(settings, "gym", processes)
    if folder.status == "finished":
        folder.close()
        return folder.path
    processes.suit_threads(0)  # such networks are small
    with nothing_left_before_the_first_step(folder, processes):
        source = make_source(
            settings.env,
            settings.policy,
            settings.algorithm,
            settings.update,
            settings.evaluation,
            settings.run,
        )
        try:
            made = loop(settings, source, folder, processes)
            print("\n".join([*filter(None, [note]), *first_lines(source)]), flush=True)
            facts = {"env": settings.env.id, "evaluation": evaluation_words(source)}
            run(made, folder, "gym", facts, env_inputs(settings.env.id))
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
    """The loop of this run: minibatch SGD for algorithms, `Textbook` for textbook methods."""
    total_steps = num_iterations(settings.run, settings.update)
    policy, seed = source.policy, settings.run.seed
    parts: dict[str, Any] = {
        "source": source,
        "tracker": Tracker(folder.path, total_steps),
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


def env_inputs(env_id: str) -> Inputs:
    """The file of an environment that belongs to no installed library, and what it imports."""
    maker: Any = find_spec(env_id).entry_point
    if not isinstance(maker, str | None):
        maker = getattr(maker, "__module__", None)
    module = str(maker).partition(":")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    return {"env.id": source_files(file or module)} if maker else {}


def first_lines(source: GymSource) -> list[str]:
    """Lines that describe the environment, the policy and how it is evaluated."""
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
    """A phrase that says how episodes are played in evaluations."""
    return (
        f"{source.evaluation.size} episodes of {source.evaluation.actions} actions, in separate "
        "environments"
    )
