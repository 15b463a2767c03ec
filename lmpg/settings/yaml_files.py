"""YAML files with settings, read strictly; `${NAME}` in them stands for an environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lmpg.settings.hints import did_you_mean
from lmpg.settings.section import UserError

MOST_VALUES = 10_000  # in a YAML file; there are a few hundred settings

# While YAML is parsed, a variable is a word of its own, so that it may stand inside {…} and […].
_VARIABLE = re.compile(r"\$?\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_ESCAPED = re.compile(r"\$\$(?=\{[A-Za-z_][A-Za-z0-9_]*\})")
_MARKS = {"$": ("\ue000", "\ue001"), "$$": ("\ue002", "\ue001")}
_MARKED = re.compile("([\ue000\ue002])(\\w+)\ue001")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file; UserError for anything but a mapping."""
    path = Path(path).expanduser()
    if path.is_fifo() and not path.is_relative_to("/dev"):  # the shell's <(…) is there
        raise UserError(f"--config {path}: a FIFO, which may never end; expected a YAML file")
    try:
        values = _StrictLoader(_marked(path.read_text(encoding="utf-8"))).get_single_data()
    except OSError as error:
        raise UserError(_unreadable(path, error)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: not a text file; expected YAML in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{path}{line}: {problem}; expected YAML such as `run:`") from error
    except (ValueError, AttributeError, RecursionError) as error:  # no date, too long or too deep
        raise UserError(
            f"{path}: a value can't be read ({error}); expected YAML such as `run:`"
        ) from error
    if _size(values, MOST_VALUES) > MOST_VALUES:
        raise UserError(
            f"{path}: holds more than {MOST_VALUES} values once its aliases (`*name`) are written "
            "out, expected one value per setting"
        )
    try:
        repr(values)  # as messages do
    except ValueError as error:  # a hexadecimal integer of thousands of digits
        raise UserError(f"{path}: a value can't be written ({error}); expected YAML") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: holds a {type(values).__name__}, expected sections such as `update:` with "
            "one setting per line below them"
        )
    unset = [f"{path}: {line}" for line in _unset(values, "")]
    if unset:
        raise UserError("\n".join(unset))
    return _each_text(values, _filled)


def escaped(values: Any) -> Any:
    """Nested values as a file has to hold them whose `${NAME}` are no variables."""
    return _each_text(values, lambda text: _VARIABLE.sub(lambda found: "$" + found[0], text))


def unescaped(values: Any) -> Any:
    """What `escaped` was given."""
    return _each_text(values, lambda text: _ESCAPED.sub("$", text))


def _size(values: Any, most: int) -> int:
    """Number of values in nested ones, with every alias written out; stops counting at `most`."""
    count, level = 0, [values]
    while level and count <= most:
        value = level.pop()
        count += 1
        if isinstance(value, dict | list | tuple | set):
            level += value.values() if isinstance(value, dict) else value
    return count


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """The mapping, after a look for repeated keys."""
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{key}` stands here a second time", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)


def _marked(text: str) -> str:
    """The text of a file with marks in place of `${NAME}` (a variable) and `$${NAME}` (these
    letters themselves)."""

    def mark(found: re.Match[str]) -> str:
        before, after = _MARKS["$$" if found[0].startswith("$$") else "$"]
        return f"{before}{found[1]}{after}"

    return _VARIABLE.sub(mark, text)


def _as_written(found: re.Match[str]) -> str:
    return f"${{{found[2]}}}"


def _filled(text: str) -> str:
    """A text with the variables' values, none of which is read as YAML."""

    def value(found: re.Match[str]) -> str:
        return os.environ[found[2]] if found[1] == _MARKS["$"][0] else _as_written(found)

    return _MARKED.sub(value, text)


def _unset(value: Any, path: str) -> Iterator[str]:
    """One line for each variable that a value names and the environment lacks."""
    if isinstance(value, str):
        for mark, name in _MARKED.findall(value):
            if mark == _MARKS["$"][0] and name not in os.environ:
                yield (
                    f"{path} = {_MARKED.sub(_as_written, value)}: the environment variable {name} "
                    f"is not set; export {name}=…, or write $${{{name}}} for these letters"
                )
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _unset(key, path)
            yield from _unset(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _unset(inner, f"{path}[{i}]")


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Nested values with every text in them changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_each_text(k, change): _each_text(x, change) for k, x in value.items()}
    return [_each_text(x, change) for x in value] if isinstance(value, list) else value


def _unreadable(path: Path, error: OSError) -> str:
    """Why the file cannot be read, with the one beside it that may be meant."""
    beside = path.parent.glob("*.y*ml") if isinstance(error, FileNotFoundError) else ()
    near = did_you_mean(path.name, [file.name for file in beside])
    return f"--config {path}: {error.strerror}; {near}expected a YAML file"
