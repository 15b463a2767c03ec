"""Rewards as Python gives them: functions, names of functions, and reward models, in one list."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lmpg.language.api.finished import Run
from lmpg.language.api.saving import SAVES, saves
from lmpg.language.rewards.local_functions import importable, name_of
from lmpg.settings.raw import IN_MEMORY, RawSettings
from lmpg.settings.section import UserError

_FUNCTION = re.compile(r"[^\W\d]\w*(\(.*)?|.+\.py:[^\W\d]\w*(\(.*)?|[\w.]+:[^\W\d]\w*(\(.*)?", re.S)
"""A built-in reward's name, FILE.py:NAME or package.module:NAME, with arguments or without."""
EXPECTED = (
    "expected a function, a function's name (built in, FILE.py:NAME, package.module:NAME), a "
    "reward model's folder or Hub id, a pair (reward model, its tokenizer), or the Run that made it"
)


def rewards_section(
    rewards: Any, parts: dict[str, Callable[[Path], object]], functions: dict[str, Callable]
) -> RawSettings | None:
    """The section `rewards`; functions that cannot be imported go into `functions`, reward models
    in memory into `parts`, by the names that the section has for them.

    A function's attribute `weight` is its weight, where the section gives no weights.
    """
    if rewards is None:
        return None
    section = dict(rewards) if isinstance(rewards, Mapping) else {}
    if isinstance(rewards, Mapping):
        named, models = (_listed(section.pop(key, None)) for key in ("functions", "models"))
    else:
        found = _listed(rewards)
        named = [x for x in found if _is_function(x)]
        models = [x for x in found if not _is_function(x)]
    weights = [getattr(x, "weight", 1.0) for x in named] + [1.0] * len(models)
    if "weights" not in section and any(x != 1.0 for x in weights):
        section["weights"] = weights
    section["functions"] = [_named(x, functions) for x in named]
    section["models"] = [_placed(x, i, parts) for i, x in enumerate(models)]
    return section


def _listed(value: Any) -> list[Any]:
    """One reward or several; a pair of a model and its tokenizer is one."""
    if value is None:
        return []
    if isinstance(value, str | os.PathLike | Run) or callable(value) or _is_pair(value):
        return [value]
    if not isinstance(value, Iterable):
        raise UserError(f"rewards holds a {type(value).__name__}, {EXPECTED}")
    return list(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(hasattr(x, SAVES) for x in value)


def _is_function(value: Any) -> bool:
    """Whether it is a function or the name of one, rather than a reward model."""
    if isinstance(value, str):
        return bool(_FUNCTION.fullmatch(value.strip())) and not Path(value).expanduser().is_dir()
    return callable(value) and not hasattr(value, SAVES)


def _named(function: Any, functions: dict[str, Callable]) -> str:
    """What settings call a reward."""
    if not isinstance(function, str | os.PathLike) and not callable(function):
        raise UserError(f"rewards.functions holds a {type(function).__name__}, {EXPECTED}")
    return named_object(function, functions)


def named_object(function: Any, functions: dict[str, Callable]) -> str:
    """What settings call a function, a class or an environment; what cannot be imported goes into
    `functions` by that name."""
    if isinstance(function, str | os.PathLike):
        return str(function)
    if (spec := importable(function)) is not None:
        return spec
    name, number = f"{IN_MEMORY}{name_of(function)}", 2
    while name in functions:
        name, number = f"{IN_MEMORY}{name_of(function)}_{number}", number + 1
    functions[name] = function
    return name


def _placed(model: Any, number: int, parts: dict[str, Callable[[Path], object]]) -> str:
    """What settings call a reward model; of a run, the model that it has trained."""
    if isinstance(model, Run):
        return str(model.model_path)
    if isinstance(model, str | os.PathLike):
        return str(model)
    if not _is_pair(model):
        beside = "; a model in memory needs its tokenizer beside it" if callable(model) else ""
        raise UserError(f"rewards.models holds a {type(model).__name__}, {EXPECTED}{beside}")
    name = f"{IN_MEMORY}reward_model_{number + 1}"
    parts[name] = saves(*model)
    return name
