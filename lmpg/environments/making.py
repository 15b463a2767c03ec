"""From an environment's id to a vector environment, with errors that say what to change."""

from __future__ import annotations

import difflib
import importlib
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from lmpg.environments.copies import Copies
from lmpg.environments.problems import register_problems
from lmpg.environments.rewind import Rewindable
from lmpg.environments.settings import EnvSettings
from lmpg.sections import UserError

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
    try:
        return make()
    except (gymnasium.error.Error, TypeError, ImportError) as error:
        raise UserError(
            f"env.id = {settings.id} with env.kwargs = {settings.kwargs} cannot be made: {error}"
        ) from error


def find_spec(env_id: str) -> EnvSpec:
    """What gymnasium has registered under `env_id`; an unknown one names its nearest relatives."""
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"env.id = {env_id}: the module {module} cannot be imported ({error}). Install it, "
                "or put its folder into PYTHONPATH"
            ) from error
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        near = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(
            f"env.id = {env_id}: expected an environment that gymnasium has registered; {hint}"
            "One that another package registers is given as package:id"
        ) from error


def _make_native(settings: EnvSettings, num_envs: int) -> VectorEnv:
    return gymnasium.make_vec(
        settings.id, num_envs, vectorization_mode="vector_entry_point", **settings.kwargs
    )


def _make_copies(settings: EnvSettings, num_envs: int) -> VectorEnv:
    kind = AsyncVectorEnv if settings.vectorization == "async" else Copies
    makers = [partial(_make_copy, settings.id, settings.kwargs, i) for i in range(num_envs)]
    return kind(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)


def _make_copy(env_id: str, kwargs: dict[str, Any], index: int) -> Rewindable:
    env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    return Rewindable(env, index)
