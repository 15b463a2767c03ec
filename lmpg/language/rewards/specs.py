"""Specs of functions and classes: reads `FILE.py:NAME(ARGUMENT=VALUE)` as settings hold it, and
looks for the name in the file, none of which is run."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
import symtable
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any

from lmpg.language.data.call_syntax import parsed_call
from lmpg.language.rewards import builtin
from lmpg.language.rewards.request import GIVEN
from lmpg.settings.raw import IN_MEMORY
from lmpg.settings.section import UserError

KEY = "rewards.functions"
BUILTIN = {name: f"{builtin.__name__}:{name}" for name in builtin.NAMES}
_MAKES_NAMES = re.compile(
    r"import\s*\(?\s*\*|\b(exec|globals?|locals|modules|setattr|vars|__(dict|getattr|path)__)\b"
)
"""In a module that may have names when it has run that its text does not bind."""
MOST_NAMES = 10
"""Told at most of those that a file has."""


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


def refuse_missing_name(spec: Spec, key: str) -> None:
    """UserError where the text of the file or module of a spec does not bind its name.

    None of the user's code is run; where only running it could tell, nothing is refused. key: the
    setting that holds the spec.
    """
    if spec.is_builtin:
        return
    source, _, name = spec.function.rpartition(":")
    said = f"{key} = {spec.text}"
    file = Path(source) if source.endswith(".py") else _file_of(source, said)
    if file is None:
        return
    found = _names_in(file, said)
    if found is None or name in found:
        return
    public = [x for x, is_defined in found.items() if is_defined and not x.startswith("_")]
    near = sorted(public, key=lambda x: -difflib.SequenceMatcher(a=name, b=x).ratio())
    own = spec.text.partition("(")[0].removesuffix(name)
    fix = f"write {own}{near[0]}" if near else "mend the name, or write it there"
    has = f"one of {', '.join(near[:MOST_NAMES])}" if near else "it to define one"
    raise UserError(f"{said}: {source} has no function or class {name!r}, expected {has}; {fix}")


def _names_in(file: Path, said: str) -> dict[str, bool] | None:
    """The names that a module's text binds, and whether by `def` or `class`; None where it may
    bind others as it runs."""
    try:
        text = importlib.util.decode_source(file.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the worker shows them
            table = symtable.symtable(text, str(file), "exec")
    except OSError as error:
        raise UserError(
            f"{said}: {file} cannot be read ({error.strerror}), expected a file with Python code; "
            "mend its permissions, or name another one"
        ) from None
    except (SyntaxError, ValueError) as error:
        raise UserError(
            f"{said}: {file} is not Python, expected a file that can be imported: "
            f"{type(error).__name__}: {error}; mend it there"
        ) from None
    if _MAKES_NAMES.search(text):
        return None
    bound = [x for x in table.get_symbols() if x.is_assigned() or x.is_imported()]
    return {x.get_name(): x.is_namespace() for x in bound}


def _file_of(module: str, said: str) -> Path | None:
    """The file of a module, found without importing any; None where only an import can find it.
    UserError where there is none."""
    name, *rest = module.split(".")
    importlib.invalidate_caches()  # it may have been written a moment ago
    found = PathFinder.find_spec(name, [os.getcwd(), *sys.path])
    if found is None and name not in sys.modules:
        found = importlib.util.find_spec(name)  # asks those that editable installs have added
        if found is None:
            raise _no_module(name, said)
    for part in rest:
        if found is None or found.submodule_search_locations is None:
            return None
        parent, places, name = found, list(found.submodule_search_locations), f"{name}.{part}"
        found = PathFinder.find_spec(name, places)
        if found is None and not _makes_modules(parent):
            raise _no_module(name, said)
    is_text = found is not None and isinstance(found.loader, SourceFileLoader)
    return Path(str(found.origin)) if is_text else None  # type: ignore[union-attr]


def _makes_modules(package: ModuleSpec) -> bool:
    """Whether a package may have modules that lie elsewhere."""
    if not isinstance(package.loader, SourceFileLoader):
        return package.loader is not None and package.origin is not None
    text = Path(str(package.origin)).read_text(encoding="latin-1")  # which any bytes are
    return _MAKES_NAMES.search(text) is not None


def _no_module(module: str, said: str) -> UserError:
    parent, _, name = module.rpartition(".")
    inside = f" in {parent}" if parent else ""
    return UserError(
        f"{said}: there is no module {name!r}{inside}, expected one that "
        "Python can import; mend the name, install it, or start lmpg in the folder that it lies in"
    )


def unsendable(function: str, column: str, error: TypeError) -> str:
    """What to say of a column that a function asks for and cannot be passed to it."""
    return (
        f"{KEY}: {function} asks for the column {column!r}, which holds {error}; only text, "
        "numbers, dates, lists and dicts of these can be passed. Convert the column in the data."
    )
