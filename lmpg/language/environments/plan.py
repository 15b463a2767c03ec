"""How the environments of a run are made: in worker processes, or here where objects are given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from lmpg.language.environments.named import KEY, TOOLS_KEY, specs_of
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.language.environments.tool_schemas import schemas_of
from lmpg.language.environments.tools import ToolEnvironment
from lmpg.language.rewards.isolated import START_TIMEOUT
from lmpg.language.rewards.local_functions import name_of
from lmpg.language.rewards.specs import Spec
from lmpg.language.rewards.worker import load
from lmpg.language.rewards.worker_process import WorkerDied, WorkerProcess, WorkerTimeout
from lmpg.settings.section import UserError

TOOLS = Spec("tools", "lmpg.language.environments.tools:ToolEnvironment", "tools", "tools", True)
SCHEMAS = "lmpg.language.environments.tool_schemas"
TOOL_SHARE = 0.9
"""Of environment.timeout, which calls may take, so that the policy can be told of a slow one."""


@dataclass(frozen=True)
class Calls:
    """How the policy calls tools: the format, and whether prompts that are text become chats."""

    call_format: str = "fenced"
    is_chat: bool = False


@dataclass(frozen=True)
class Plan:
    """What to make for each episode.

    spec, arguments: what worker processes import, and what they call it with; no spec where an
    object was given. make: makes one in this process; then is_local. key: the setting.
    """

    name: str
    key: str
    timeout: float
    spec: Spec | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    make: Callable[[], Any] | None = None

    @property
    def is_local(self) -> bool:
        """Whether the environments live in this process."""
        return self.make is not None


def plan_of(
    settings: EnvironmentSettings,
    given: Mapping[str, Callable],
    calls: Calls,
    sources: dict[str, list[str]],
) -> Plan:
    """How the environments that the settings ask for are made; see `EnvironmentPool`."""
    if not settings.wanted:
        raise UserError(f"no environment is given: use --{KEY} FILE.py:NAME or --{TOOLS_KEY}.")
    specs = specs_of(settings, given)
    inner = None if settings.path is None else _plan_of_environment(settings, specs, given)
    if settings.tools:
        return _with_tools(settings, specs, given, calls, inner, sources)
    assert inner is not None
    return inner


def _plan_of_environment(
    settings: EnvironmentSettings, specs: Mapping[str, Spec], given: Mapping[str, Callable]
) -> Plan:
    path = str(settings.path)
    if path in given:
        return Plan(name_of(given[path]), KEY, settings.timeout, make=maker(given[path]))
    spec = specs[path]
    made = Plan(spec.name, KEY, settings.timeout, spec, spec.arguments)
    if settings.is_built_in or given:
        return replace(made, make=partial(load(spec.function), **spec.arguments))
    return made


def _with_tools(
    settings: EnvironmentSettings,
    specs: Mapping[str, Spec],
    given: Mapping[str, Callable],
    calls: Calls,
    inner: Plan | None,
    sources: dict[str, list[str]],
) -> Plan:
    """The plan of tools, around another one's environment if there is one; tools given as objects
    keep all of it in this process."""
    is_local = bool(given) or settings.is_built_in
    functions = [given.get(text) or specs[text].function for text in settings.tools]
    name = ", ".join(name_of(x) if callable(x) else x.rpartition(":")[2] for x in functions)
    arguments: dict[str, Any] = {
        "tools": functions,
        "schemas": _described(functions, is_local, sources),
        "call_format": calls.call_format,
        "seconds": TOOL_SHARE * settings.timeout,
        "is_chat": calls.is_chat,
        "inner": None,
    }
    if is_local:
        arguments["inner"] = inner and inner.make
        make = partial(ToolEnvironment, **arguments)
        return Plan(name, TOOLS_KEY, settings.timeout, TOOLS if not given else None, make=make)
    if inner is not None and inner.spec is not None:
        arguments["inner"] = {"spec": inner.spec.function, "arguments": inner.arguments}
    arguments["interrupts"] = True
    return Plan(name, TOOLS_KEY, settings.timeout, TOOLS, arguments)


def _described(
    functions: list[Any], is_local: bool, sources: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """The schemas of tools; those of a user's files are made in a process of their own, as are the
    results of their calls."""
    try:
        if is_local:
            return schemas_of([load(x) if isinstance(x, str) else x for x in functions])
        process = WorkerProcess("", START_TIMEOUT, {"tools": functions}, sources, server=SCHEMAS)
        try:
            reply = process.start()
        finally:
            process.stop()
        if "error" in reply:
            raise ValueError(reply["error"].removeprefix("ValueError: "))
        return reply["schemas"]
    except (WorkerDied, WorkerTimeout, BrokenPipeError) as error:
        raise UserError(f"{TOOLS_KEY}: while it was imported, {error or 'it hung'}") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{TOOLS_KEY}: {error}") from None


def maker(given: Any) -> Callable[[], Any]:
    """Makes an environment from a class or a function, or a copy of an instance."""
    if callable(getattr(given, "step", None)) and not isinstance(given, type):
        return partial(copy.deepcopy, given)
    if not callable(given):
        raise UserError(
            f"{KEY} is a {type(given).__name__}, expected a class with reset and step, a function "
            "that makes such an environment, or the name of one: FILE.py:NAME"
        )
    return given
