"""Nested dicts of raw settings: read from YAML, laid over each other, checked against a class.

They come from four places, later ones winning: class defaults, presets, a YAML file, and flags or
keyword arguments. They are merged as plain dicts and validated once, so that checks across fields
see only the final combination.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from lmpg.settings.section import Section, UserError

MOST_VALUES = 10_000  # in a YAML file; there are a few hundred settings
S = TypeVar("S", bound=Section)
RawSettings = dict[str, Any]

# beside the package in a checkout, else where the wheel put them
_CONFIGS = [Path(__file__).parents[2] / "configs", Path(sys.prefix) / "share" / "lmpg"]


def read_yaml(path: str | Path) -> RawSettings:
    """The settings in a YAML file; UserError for anything but a mapping."""
    path = Path(path).expanduser()
    if path.is_fifo() and not path.is_relative_to("/dev"):  # the shell's <(…) is there
        raise UserError(f"--config {path}: a FIFO, which may never end; expected a YAML file")
    try:
        values = _StrictLoader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; expected a YAML file") from error
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
    return values


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


def merged(*layers: Mapping[str, Any]) -> RawSettings:
    """Nested dicts laid over each other, the later on top; an empty section changes nothing."""
    result: RawSettings = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            if isinstance(below, dict):
                if value is not None:  # what is no mapping is refused when all is validated
                    result[key] = merged(below, value) if isinstance(value, Mapping) else value
            else:
                result[key] = value
    return result


def is_section(annotation: object) -> bool:
    """Whether a field holds further settings rather than a value."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def is_list(annotation: object) -> bool:
    """Whether a field holds several values of one kind."""
    return get_origin(annotation) is tuple


def defaults_of(settings: type[BaseModel]) -> RawSettings:
    """All defaults of a settings class as nested dicts; fields that have none are left out."""
    values: RawSettings = {}
    for name, field in settings.model_fields.items():
        if is_section(field.annotation) and field.is_required():
            values[name] = defaults_of(field.annotation)  # type: ignore[arg-type]
        elif not field.is_required():
            default = field.get_default(call_default_factory=True)
            values[name] = default.model_dump() if isinstance(default, BaseModel) else default
    return values


def paths_of(settings: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    for name, field in settings.model_fields.items():
        if is_section(field.annotation):
            yield from paths_of(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name


def nearest(path: str, known: list[str]) -> str | None:
    """The known dotted name closest to a misspelt one; None where none is close."""
    leaf = path.rpartition(".")[2]
    same_leaf = [k for k in known if k.rpartition(".")[2] == leaf]
    close = same_leaf or difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    if not close:
        by_leaf = {k.rpartition(".")[2]: k for k in known}
        close = [by_leaf[m] for m in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.7)]
    return close[0] if close else None


def misplaced(settings: type[BaseModel], values: Mapping, source: str) -> list[str]:
    """One line for each key of a YAML file that is unknown or should have been a section."""
    known = list(paths_of(settings))
    return list(_misplaced(settings, values, source, known, ""))


def _misplaced(
    settings: type[BaseModel], values: Mapping, source: str, known: list[str], prefix: str
) -> Iterator[str]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        field = settings.model_fields.get(str(key))
        if field is None:
            match = nearest(path, known)
            hint = f"did you mean {match}?" if match else "see --help for all settings"
            yield f"{source}: unknown setting {path} = {value!r}; {hint}"
        elif is_section(field.annotation):
            if isinstance(value, Mapping):
                section: Any = field.annotation
                yield from _misplaced(section, value, source, known, f"{path}.")
            elif value is not None:
                inside = next(k for k in known if k.startswith(f"{path}."))
                yield f"{source}: {path} = {value!r}, expected a section with keys such as {inside}"


def completed(settings: type[S], preset: Mapping[str, Any], given: Mapping[str, Any]) -> S:
    """The settings object: class defaults < `preset` < what the user gave."""
    wrong = misplaced(settings, preset, "preset")
    if wrong:
        raise UserError("\n".join(wrong))
    return validated(settings, merged(defaults_of(settings), preset, given))


def with_lists(settings: type[BaseModel], values: Mapping[str, Any]) -> RawSettings:
    """Values in which a single one stands for a list of one, as on the command line."""
    found = dict(values)
    for name, value in values.items():
        field = settings.model_fields.get(name)
        if field and is_section(field.annotation) and isinstance(value, Mapping):
            found[name] = with_lists(field.annotation, value)  # type: ignore[arg-type]
        elif field and is_list(field.annotation) and not isinstance(value, list):
            found[name] = [value]
    return found


def as_in_yaml(value: Any) -> Any:
    """A Python value, nested ones too, as YAML would give it: paths as text, tuples as lists,
    numpy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {key: as_in_yaml(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_in_yaml(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return str(value)
    return value.item() if getattr(value, "shape", None) == () else value


def validated(settings: type[S], values: RawSettings) -> S:
    """The settings object, or a UserError with one readable line per problem."""
    if nul := list(_with_nul(values, "")):
        raise UserError("\n".join(nul))
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        lines = [_line(problem) for problem in error.errors(include_url=False)]
        raise UserError("\n".join(dict.fromkeys(lines))) from None


def _with_nul(value: Any, path: str) -> Iterator[str]:
    """One line for each text that holds a NUL character, which no path and no name can."""
    if isinstance(value, str) and "\0" in value:
        yield f"{path} = {value!r} holds a NUL character; expected text without one"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _with_nul(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _with_nul(inner, f"{path}[{i}]")


def _line(problem: Any) -> str:
    own = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else ""
    if own and not own.startswith("expected"):  # such checks name keys and values themselves
        return own
    path = ""
    for part in problem["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if problem["type"] == "missing":
        return f"{path} is not set; it has no default"
    message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, expected ")
    return f"{path} = {problem['input']!r}: expected {message}"


def configs(kind: str) -> Path:
    """The folder with the YAML files of `kind`: `algorithms` or `gym`."""
    return next((c / kind for c in _CONFIGS if (c / kind).is_dir()), _CONFIGS[0] / kind)


def preset_names() -> list[str]:
    """Names of the presets in configs/algorithms."""
    return sorted(path.stem for path in configs("algorithms").glob("*.yaml"))


def named_preset(name: str, methods: list[str]) -> tuple[str, RawSettings]:
    """The method that `name` stands for (one of `methods`), and the settings of its preset.

    A preset's `algorithm.name` says which method it sets up; without one it is the method of the
    file's own name. A method needs no preset.
    """
    path = configs("algorithms") / f"{name}.yaml"
    known = sorted({*methods, *preset_names()})
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown method {name!r}; {hint}expected one of {', '.join(known)}")
    values = read_yaml(path) if path.is_file() else {}
    section = dict(values.get("algorithm") or {})
    method = section.pop("name", name)
    if method not in methods:
        raise UserError(f"{path}: algorithm.name = {method!r}, expected one of {methods}")
    return method, {**values, "algorithm": section} if section else _without_algorithm(values)


def _without_algorithm(values: RawSettings) -> RawSettings:
    return {key: value for key, value in values.items() if key != "algorithm"}
