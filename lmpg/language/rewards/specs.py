"""Specs of functions and classes: reads `FILE.py:NAME(ARGUMENT=VALUE)` as settings hold it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmpg.language.data.call_syntax import parsed_call
from lmpg.language.rewards import builtin
from lmpg.language.rewards.request import GIVEN
from lmpg.settings.raw import IN_MEMORY
from lmpg.settings.section import UserError

KEY = "rewards.functions"
BUILTIN = {name: f"{builtin.__name__}:{name}" for name in builtin.NAMES}


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
    """Parses the spec of a reward; raises with the reason if `text` is none."""
    found = spec_of(text, KEY, "reward", BUILTIN)
    arguments = found.arguments
    given = [argument for argument in arguments if argument in (*GIVEN, "completion_steps")]
    if given:
        raise UserError(f"{KEY}: {text!r} sets {given[0]}, which comes with every batch.")
    return found


def spec_of(text: str, key: str, what: str, builtins: Mapping[str, str]) -> Spec:
    """Parses a spec; raises with the reason if `text` is none.

    key: the setting that holds it. what: what it names, for messages. builtins: bare names and
    what they stand for.
    """
    expected = f"FILE.py:NAME, package.module:NAME, or the name of a built-in {what}"
    expected = expected if builtins else "FILE.py:NAME or package.module:NAME"
    if text.startswith(IN_MEMORY):
        kind = "a function" if what in ("reward", "tool") else f"an {what}"
        raise UserError(
            f"{key}: {text!r} is {kind} that was given to lmpg.train as an object, which only "
            "the same call can give again; to name it here, put it into a file: FILE.py:NAME."
        )
    match = re.fullmatch(r"(?:(.+?):)?([^\W\d]\w*)(\(.*)?", text.strip(), re.DOTALL)
    if match is None:
        named = "function" if what in ("reward", "tool") else what
        raise UserError(f"{key}: {text!r} names no {named}; expected {expected}.")
    source, name, call = match.groups()
    _, arguments = parsed_call(f"{name}{call or ''}", key)
    if source is None:
        function = _builtin(name, key, what, builtins)
        return Spec(text, function, name, name, True, arguments)
    place = _source(source, text, key, expected)
    return Spec(text, f"{place}:{name}", name, Path(source).stem, False, arguments)


def _builtin(name: str, key: str, what: str, builtins: Mapping[str, str]) -> str:
    if name in builtins:
        return builtins[name]
    near = difflib.get_close_matches(name, builtins, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    listed = f" Built in are: {', '.join(builtins)};" if builtins else ""
    own = "a function of your own" if what in ("reward", "tool") else "one of your own"
    raise UserError(
        f"{key}: there is no built-in {what} {name!r}.{hint}{listed} {own} is FILE.py:NAME or "
        "package.module:NAME."
    )


def _source(source: str, text: str, key: str, expected: str) -> str:
    """A module's name, or the absolute path of a file."""
    if not source.endswith(".py"):
        if os.sep in source or not all(part.isidentifier() for part in source.split(".")):
            raise UserError(
                f"{key}: {source!r} in {text!r} is neither a file ending in .py nor a module; "
                f"expected {expected}."
            )
        return source
    path = Path(source).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"{key}: the file {source} of {text!r} doesn't exist.")
    return str(path)


def unsendable(function: str, column: str, error: TypeError) -> str:
    """What to say of a column that a function asks for and cannot be passed to it."""
    return (
        f"{KEY}: {function} asks for the column {column!r}, which holds {error}; only text, "
        "numbers, dates, lists and dicts of these can be passed. Convert the column in the data."
    )
