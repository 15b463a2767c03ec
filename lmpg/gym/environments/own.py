"""Environments given as a class, a factory or an instance: registered, so that they have an id."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from lmpg.settings.said_once import say_once
from lmpg.settings.section import UserError

Env = str | type | Callable[..., gymnasium.Env] | gymnasium.Env
EXPECTED = "expected an id, an environment's class, a function that makes one, or an instance"


def env_id_of(env: Env) -> str:
    """The id of an environment; other than by an id it is registered as `own/NAME-v0`.

    The name is that of the class or function, so that a resumed run finds it again.
    """
    if isinstance(env, str):
        return env
    maker = _maker(env)
    name = "".join(x for x in maker.__name__ if x.isalnum() or x in "_-") or "environment"
    env_id = f"own/{name}-v0"
    # replaced without `register`'s warning: the same name may stand for a changed class
    gymnasium.registry[env_id] = EnvSpec(env_id, entry_point=maker)
    return env_id


def _maker(env: Any) -> Callable[..., gymnasium.Env]:
    """A function with a name that makes the environment."""
    if isinstance(env, VectorEnv):
        raise UserError(
            f"env = {env!r} is a vector of environments; give a single one, and env.num_envs"
        )
    if isinstance(env, gymnasium.Env):
        return _copier(env)
    if not callable(env) or (isinstance(env, type) and not issubclass(env, gymnasium.Env)):
        raise UserError(f"env = {env!r}: {EXPECTED}, all of gymnasium's Env")
    of = getattr(env, "func", env)  # of functools.partial

    def make(**kwargs: Any) -> gymnasium.Env:
        return env(**kwargs)

    make.__name__ = getattr(of, "__name__", type(of).__name__)
    make.__module__ = getattr(of, "__module__", __name__)  # whose file is the run's input
    return make


def _copier(env: gymnasium.Env) -> Callable[..., gymnasium.Env]:
    """Makes copies of an instance, with whatever was changed in it."""
    inner = env.unwrapped

    def again(**kwargs: Any) -> gymnasium.Env:
        if kwargs:
            raise UserError(f"env.kwargs = {kwargs}, but the environment is made already")
        return _copied(env)

    again.__name__, again.__module__ = type(inner).__name__, type(inner).__module__
    return again


def _copied(env: gymnasium.Env) -> gymnasium.Env:
    try:
        found = copy.deepcopy(env)
    except Exception as error:  # what a simulator or a window holds may not be copied
        return _made_anew(env, error)
    # copies of a generator would all draw the same where `reset` forgets to seed it
    found.unwrapped._np_random = None
    return found


def _made_anew(env: gymnasium.Env, problem: Exception) -> gymnasium.Env:
    """Another one like an environment that cannot be copied, from the id that it was made by."""
    why = f"env = {env!r} cannot be copied ({' '.join(str(problem).split())})"
    try:
        if env.spec is None:
            raise ValueError("no id")
        found = gymnasium.make(copy.copy(env.spec))
    except ValueError:  # no id, or a wrapper of which gymnasium does not know its arguments
        raise UserError(
            f"{why}, but each of env.num_envs is one of its own. Give its class, or a function "
            "that makes one"
        ) from None
    say_once(
        f"{why} and is made anew from {env.spec.id}: what was changed in it since is not in the "
        "new one. Give a function that makes it to keep such changes"
    )
    return found
