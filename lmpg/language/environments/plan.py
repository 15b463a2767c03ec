"""How the environments of a run are made: in worker processes, or here where objects are given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from lmpg.language.environments.named import KEY, TOOLS_KEY, specs_of
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.language.rewards.local_functions import name_of
from lmpg.language.rewards.specs import Spec
from lmpg.language.rewards.worker import load
from lmpg.settings.section import UserError


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
    tool_format: str,
    sources: dict[str, list[str]],
) -> Plan:
    """How the environments that the settings ask for are made; see `EnvironmentPool`."""
    if not settings.wanted:
        raise UserError(f"no environment is given: use --{KEY} FILE.py:NAME or --{TOOLS_KEY}.")
    specs = specs_of(settings, given)
    path = str(settings.path)
    if path in given:
        return Plan(name_of(given[path]), KEY, settings.timeout, make=maker(given[path]))
    spec = specs[path]
    made = Plan(spec.name, KEY, settings.timeout, spec, spec.arguments)
    if settings.is_built_in:
        return replace(made, make=partial(load(spec.function), **spec.arguments))
    return made


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
