"""Nested dicts of raw settings: laid over each other, checked against a class.

They come from four places, later ones winning: class defaults, presets, a YAML file, and flags or
keyword arguments. They are merged as plain dicts and validated once, so that checks across fields
see only the final combination.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lmpg.settings.hints import did_you_mean, did_you_mean_setting
from lmpg.settings.section import Problems, Section

S = TypeVar("S", bound=Section)
RawSettings = dict[str, Any]
IN_MEMORY = "memory:"
"""Before the name of what settings hold as an object of Python."""


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


def field_of(settings: type[BaseModel], path: str) -> FieldInfo:
    """The field with this dotted name."""
    *sections, leaf = path.split(".")
    for section in sections:
        settings = settings.model_fields[section].annotation  # type: ignore[assignment]
    return settings.model_fields[leaf]


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
            hint = did_you_mean_setting(path, known)
            if isinstance(value, Mapping) and not prefix:
                yield f"{source}: unknown section {key}; {_sections(settings, str(key), hint)}"
            else:
                hint = hint or "see --help for all settings"
                yield f"{source}: unknown setting {path} = {value!r}; {hint}"
        elif is_section(field.annotation):
            if isinstance(value, Mapping):
                section: Any = field.annotation
                yield from _misplaced(section, value, source, known, f"{path}.")
            elif value is not None:
                inside = next(k for k in known if k.startswith(f"{path}."))
                yield f"{source}: {path} = {value!r}, expected a section with keys such as {inside}"


def _sections(settings: type[BaseModel], wrong: str, hint: str) -> str:
    """What to write for a wrong section; hint: what is known of a setting by that name."""
    found = [name for name, field in settings.model_fields.items() if is_section(field.annotation)]
    near = did_you_mean(wrong, found)
    if hint and not near:
        return hint
    return f"{near}expected one of {', '.join(found)}"


def placed(settings: type[BaseModel], values: Mapping[str, Any]) -> RawSettings:
    """The values whose names are right: those that `misplaced` has no line for."""
    found: RawSettings = {}
    for name, value in values.items():
        field = settings.model_fields.get(str(name))
        if field is None:
            continue
        if not is_section(field.annotation):
            found[name] = value
        elif isinstance(value, Mapping):
            found[name] = placed(field.annotation, value)  # type: ignore[arg-type]
    return found


def completed(settings: type[S], preset: Mapping[str, Any], given: Mapping[str, Any]) -> S:
    """The settings object: class defaults < `preset` < what the user gave."""
    return validated(settings, layered(settings, preset, given))


def layered(
    settings: type[BaseModel], preset: Mapping[str, Any], given: Mapping[str, Any]
) -> RawSettings:
    """All values of a settings object: class defaults < `preset` < what the user gave."""
    Problems(misplaced(settings, preset, "preset")).refuse()
    return merged(defaults_of(settings), preset, given)


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
    found, problems = checked(settings, values)
    problems.refuse()
    assert found is not None
    return found


def settled(
    settings: type[S], values: RawSettings, problems: Problems, look: Callable[[S], object]
) -> S:
    """The settings object; UserError with all that is wrong: what is known already (problems), with
    the values, and, where something is wrong, what `look` then raises of the rest."""
    found, wrong = checked(settings, values, problems)
    problems = Problems([*problems, *wrong])
    if problems and found is not None:
        with problems.gathered():
            look(found)
    problems.refuse()
    assert found is not None
    return found


def checked(
    settings: type[S], values: RawSettings, known: Iterable[str] = ()
) -> tuple[S | None, Problems]:
    """The settings object, and a line for each problem.

    With problems, what is wrong has its default in the object, so that more can be looked for; None
    where there is none to look at. known: problems that there are already. What several settings
    make wrong together is told unless one of them is wrong by itself.
    """
    problems = Problems(_with_nul(values, ""))
    if problems:
        return None, problems
    try:
        return settings.model_validate(values), problems
    except ValidationError as error:
        found = error.errors(include_url=False)
    rest = _without(settings, values, [problem["loc"] for problem in found])
    if rest is None:
        return None, Problems(dict.fromkeys(map(_line, found)))
    problems += [_line(problem) for problem in found if problem["loc"]]
    doubtful = {name for text in (*known, *problems) for name in _names_in(text)}
    for check in settings.__pydantic_decorators__.model_validators:
        try:
            getattr(settings, check)(rest)
        except ValueError as error:
            problems += [str(error)] if not doubtful & _names_in(str(error)) else []
    return rest, Problems(dict.fromkeys(problems))


def _names_in(text: str) -> set[str]:
    """The dotted names in a text, as in YAML, of flags too."""
    return {name.replace("-", "_") for name in re.findall(r"[a-z]+(?:\.[a-z][a-z0-9_-]+)+", text)}


def _without(settings: type[S], values: RawSettings, places: list[Any]) -> S | None:
    """Settings that have defaults at these places, not checked as a whole; None where a value is in
    no section."""
    sections: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        if not is_section(field.annotation):
            return None
        section: Any = field.annotation
        here = [place[1:] for place in places if place[:1] == (name,)]
        try:
            sections[name] = section.model_validate(_pruned(values.get(name), here))
        except ValidationError:  # what is wrong lies between its values
            sections[name] = section()
    return settings.model_construct(**sections)  # type: ignore[return-value]


def _pruned(section: Any, places: list[tuple]) -> RawSettings:
    """A section's values without those at these places."""
    kept: RawSettings = {}
    for name, value in section.items() if isinstance(section, Mapping) else ():
        below = [place[1:] for place in places if place[:1] == (name,)]
        if not below:
            kept[name] = value
        elif isinstance(value, Mapping) and () not in below:
            kept[name] = _pruned(value, below)
    return kept


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
    if problem["type"] == "dict_type":
        return f"{path} = {problem['input']!r}: expected names with values, as in '{{name: value}}'"
    message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, expected ")
    return f"{path} = {problem['input']!r}: expected {message}"
