"""Specs of reward functions: reads `FILE.py:NAME(ARGUMENT=VALUE)` as settings hold it."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmpg.language.data.call_syntax import parsed_call
from lmpg.language.rewards import builtin
from lmpg.language.rewards.request import GIVEN
from lmpg.settings.raw import IN_MEMORY
from lmpg.settings.section import UserError

KEY = "rewards.functions"
EXPECTED = "FILE.py:NAME, package.module:NAME, or the name of a built-in reward"


@dataclass(frozen=True)
class Spec:
    """A function, where it comes from, and its fixed arguments.

    text: as the user wrote it. function: what the worker imports, with an absolute path.
    qualifier: stands before the name if another function has the same name.
    """

    text: str
    function: str
    name: str
    qualifier: str
    is_builtin: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


def parsed_spec(text: str) -> Spec:
    """Parses a spec; raises with the reason if `text` is none."""
    if text.startswith(IN_MEMORY):
        raise UserError(
            f"{KEY}: {text!r} is a function that was given to lmpg.train as an object, which only "
            "the same call can give again; to name it here, put it into a file: FILE.py:NAME."
        )
    match = re.fullmatch(r"(?:(.+?):)?([^\W\d]\w*)(\(.*)?", text.strip(), re.DOTALL)
    if match is None:
        raise UserError(f"{KEY}: {text!r} names no function; expected {EXPECTED}.")
    source, name, call = match.groups()
    _, arguments = parsed_call(f"{name}{call or ''}", KEY)
    given = [argument for argument in arguments if argument in (*GIVEN, "completion_steps")]
    if given:
        raise UserError(f"{KEY}: {text!r} sets {given[0]}, which comes with every batch.")
    if source is None:
        return Spec(text, f"{builtin.__name__}:{_builtin(name)}", name, name, True, arguments)
    return Spec(text, f"{_source(source, text)}:{name}", name, Path(source).stem, False, arguments)


def _builtin(name: str) -> str:
    if name in builtin.NAMES:
        return name
    near = difflib.get_close_matches(name, builtin.NAMES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"{KEY}: there is no built-in reward {name!r}.{hint} Built in are: "
        f"{', '.join(builtin.NAMES)}; a function of your own is FILE.py:NAME or "
        "package.module:NAME."
    )


def _source(source: str, text: str) -> str:
    """A module's name, or the absolute path of a file."""
    if not source.endswith(".py"):
        if os.sep in source or not all(part.isidentifier() for part in source.split(".")):
            raise UserError(
                f"{KEY}: {source!r} in {text!r} is neither a file ending in .py nor a module; "
                f"expected {EXPECTED}."
            )
        return source
    path = Path(source).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"{KEY}: the file {source} of {text!r} doesn't exist.")
    return str(path)


def unsendable(function: str, column: str, error: TypeError) -> str:
    """What to say of a column that a function asks for and cannot be passed to it."""
    return (
        f"{KEY}: {function} asks for the column {column!r}, which holds {error}; only text, "
        "numbers, dates, lists and dicts of these can be passed. Convert the column in the data."
    )
