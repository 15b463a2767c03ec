"""From an environment's id to a vector environment, with errors that say what to change."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from lmpg.gym.environments.checks import FAILURES
from lmpg.gym.environments.copies import Copies
from lmpg.gym.environments.problems import register_problems
from lmpg.gym.environments.rewind import Rewindable
from lmpg.gym.environments.settings import EnvSettings
from lmpg.settings.section import UserError

register_problems()


def make_envs(settings: EnvSettings, num_envs: int) -> VectorEnv:
    """`num_envs` copies that step together, in the native vector form where there is one."""
    spec = find_spec(settings.id)
    native = spec.vector_entry_point is not None and not spec.additional_wrappers
    if settings.vectorization == "native" and not native:
        raise UserError(
            f"env.vectorization = native, but {settings.id} has no native vector environment in "
            "gymnasium. Use auto, sync or async"
        )
    if spec.entry_point is None or (native and settings.vectorization in ("auto", "native")):
        make = partial(_make_native, settings, num_envs)
    else:
        make = partial(_make_copies, settings, num_envs)
    with _refused(settings.id, settings.kwargs):
        envs = make()
    modes = [*AutoresetMode, *(mode.value for mode in AutoresetMode)]
    if envs.metadata.get("autoreset_mode") not in modes:
        raise UserError(
            f"env.id = {settings.id}: its {type(envs.unwrapped).__name__} does not say when it "
            'resets. Set metadata["autoreset_mode"] to a gymnasium.vector.AutoresetMode, or take '
            "env.vectorization sync"
        )
    return envs


@contextmanager
def _refused(env_id: str, kwargs: dict[str, Any]) -> Iterator[None]:
    """Turns errors while an environment is made into a UserError."""
    try:
        yield
    except UserError:
        raise
    except FAILURES as error:  # a constructor may raise anything
        raise UserError(
            f"env.id = {env_id} with env.kwargs = {kwargs} cannot be made: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def make_rendered(env_id: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    """One environment that renders frames as arrays; UserError where it cannot."""
    find_spec(env_id)
    with _refused(env_id, kwargs):
        env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
        modes = env.metadata.get("render_modes", [])
        env.close()
        if "rgb_array" not in modes:
            raise UserError(f"env.id = {env_id} cannot be rendered as rgb_array: it has {modes}")
        return gymnasium.make(env_id, disable_env_checker=True, render_mode="rgb_array", **kwargs)


def find_spec(env_id: str) -> EnvSpec:
    """The spec registered under `env_id`; the error for an unknown id names the nearest ones."""
    module, _, name = env_id.rpartition(":")
    if module:
        if (here := os.getcwd()) not in sys.path:  # a script looks beside itself alone
            sys.path.append(here)
        try:
            importlib.import_module(module)
        except FAILURES as error:  # a module may raise anything
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(
                f"env.id = {env_id}: the module {module} cannot be imported ({why}). Expected "
                "module:id, as in mine:Mine-v0 for a mine.py that registers Mine-v0; install it, "
                "start in its folder, or put that into PYTHONPATH"
            ) from error
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        near = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(
            f"env.id = {env_id}: expected an environment that gymnasium has registered; {hint}"
            "One that a module of yours or another package registers is given as module:id"
        ) from error


def _make_native(settings: EnvSettings, num_envs: int) -> VectorEnv:
    return gymnasium.make_vec(
        settings.id, num_envs, vectorization_mode="vector_entry_point", **settings.kwargs
    )


def _make_copies(settings: EnvSettings, num_envs: int) -> VectorEnv:
    kind = AsyncVectorEnv if settings.vectorization == "async" else Copies
    spec = find_spec(settings.id)
    if kind is AsyncVectorEnv:  # one here first: what a worker refuses comes with its traceback
        _tried(_make_copy(settings, spec, 0))
    # a worker that does not inherit this process's memory has not registered what this one has
    makers = [partial(_make_copy, settings, spec, i) for i in range(num_envs)]
    return kind(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)


def _tried(env: Rewindable) -> None:
    env.action_space.seed(0)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()


def _make_copy(settings: EnvSettings, spec: EnvSpec, index: int) -> Rewindable:
    env = gymnasium.make(spec, disable_env_checker=True, **settings.kwargs)
    return Rewindable(env, index, settings.id)
