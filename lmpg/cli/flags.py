"""The command line: `--config FILE` and flags become validated settings; errors become one line.

tyro reads the flags and writes --help. It hands over only the flags that were given, unconverted:
pydantic converts and checks them together with everything else, so that all errors look alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_args, get_origin

import tyro
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from tyro.constructors import PrimitiveConstructorSpec

from lmpg.algorithms import ALGORITHMS, algorithm_name
from lmpg.settings.raw import (
    Values,
    defaults_of,
    is_section,
    merged,
    misplaced,
    nearest,
    paths_of,
    read_yaml,
    validated,
)
from lmpg.settings.section import Section, UserError

S = TypeVar("S", bound=Section)

Preset = Mapping[str, Any] | Callable[[Values], Mapping[str, Any]]


def parse(
    settings: type[S] | Mapping[str, type[S]],
    argv: Sequence[str] | None = None,
    defaults: Preset | None = None,
) -> S:
    """Settings from class defaults < `defaults` < `--config FILE` < flags; exits on --help.

    `settings` may be LanguageSettings[PPO], or GymSettings alone: then `algorithm.name` picks the
    algorithm (ppo if it is not given), as it does among classes by name. `defaults` is a nested
    dict, or a function that makes one from what the user gave (YAML and flags as nested dicts of
    raw values).
    """
    flags, config = taken(list(sys.argv[1:] if argv is None else argv), "--config")
    flags, name_flag = taken(flags, "--algorithm.name")
    from_yaml = read_yaml(config) if config else {}
    algorithm = from_yaml.get("algorithm")
    name_in_yaml = algorithm.pop("name", None) if isinstance(algorithm, dict) else None
    names = list(settings) if isinstance(settings, Mapping) else []
    settings, name = _with_algorithm(settings, name_flag or name_in_yaml)

    problems = misplaced(settings, from_yaml, str(config)) + _wrong_flags(settings, flags)
    if problems:
        raise UserError("\n".join(problems))
    named: Values = {"algorithm": {"name": name}} if name else {}

    def preset(given: Values) -> Mapping[str, Any]:
        made = defaults(given) if callable(defaults) else (defaults or {})
        wrong = misplaced(settings, made, "preset")
        if wrong:
            raise UserError("\n".join(wrong))
        return made

    help_wanted = "-h" in flags or "--help" in flags
    shown = preset(merged(from_yaml, named)) if help_wanted else {}
    all_shown = merged(defaults_of(settings), shown, from_yaml)
    from_flags = _read_flags(settings, flags, all_shown, _names_text(names, name))
    made = preset(merged(from_yaml, from_flags, named))
    return validated(settings, merged(defaults_of(settings), made, from_yaml, from_flags))


def taken(argv: list[str], flag: str) -> tuple[list[str], str | None]:
    """`argv` without `flag VALUE` (or `flag=VALUE`), and the value."""
    for i, word in enumerate(argv):
        if word.startswith(f"{flag}="):
            return argv[:i] + argv[i + 1 :], word.partition("=")[2]
        if word == flag:
            if i + 1 == len(argv) or argv[i + 1].startswith("--"):
                raise UserError(f"{flag} needs a value after it")
            return argv[:i] + argv[i + 2 :], argv[i + 1]
    return argv, None


def _with_algorithm(
    settings: type[S] | Mapping[str, type[S]], name: str | None
) -> tuple[type[S], str | None]:
    """The settings class with its algorithm filled in, and that algorithm's name."""
    if isinstance(settings, Mapping):
        name = name or "ppo"
        if name not in settings:
            raise UserError(f"algorithm.name = {name!r}: expected one of {', '.join(settings)}")
        return settings[name], name
    if "algorithm" not in settings.model_fields:
        return settings, None
    generic = bool(settings.__pydantic_generic_metadata__["parameters"])
    own = None if generic else algorithm_name(settings.model_fields["algorithm"].annotation)  # type: ignore[arg-type]
    if name not in (None, own, *ALGORITHMS):
        raise UserError(f"algorithm.name = {name!r}: expected one of {', '.join(ALGORITHMS)}")
    if generic:
        name = name or "ppo"
        return settings[ALGORITHMS[name]], name  # type: ignore[index]
    if name not in (None, own):
        raise UserError(
            f"algorithm.name = {name!r}, but this script trains with {own}; "
            f"run `lmpg train {name}` instead, or leave algorithm.name out"
        )
    return settings, own


def _wrong_flags(settings: type[BaseModel], argv: list[str]) -> list[str]:
    """One line for each flag that is unknown, has no value or too many, or stands there twice."""
    known = {f"--{path}".replace("_", "-"): path for path in paths_of(settings)}
    seen: set[str] = set()
    problems = []
    for flag, words in groups(argv):
        if flag not in known:
            problems.append(_unknown(flag, words, list(known.values())))
        elif flag in seen:
            problems.append(f"{flag} stands there twice; give it once, with all its values")
        elif _nargs(_field(settings, known[flag])) == 1 and len(words) != 1:
            given = f"takes one value, not {' '.join(words)}" if words else "needs a value after it"
            problems.append(f"{flag} {given}")
        seen.add(flag)
    return problems


def groups(argv: list[str]) -> list[tuple[str, list[str]]]:
    """Each flag (written with dashes) and the words up to the next one; --help is left out."""
    groups: list[tuple[str, list[str]]] = []
    for word in argv:
        if word in ("-h", "--help"):
            continue
        if word.startswith("--") or not groups:
            flag, equals, value = word.partition("=")
            groups.append((flag.replace("_", "-"), [value] if equals else []))
        else:
            groups[-1][1].append(word)
    return groups


def _unknown(flag: str, words: list[str], known: list[str]) -> str:
    given = " ".join([flag, *words])
    if not flag.startswith("--"):
        return f"unexpected {given!r}; settings are given as --section.name VALUE, see --help"
    match = nearest(flag.removeprefix("--").replace("-", "_"), known)
    right = f"--{match}".replace("_", "-")
    hint = f"did you mean {right}?" if match else "see --help for all flags"
    return f"unknown flag {given}; {hint}"


def _field(settings: type[BaseModel], path: str) -> FieldInfo:
    *sections, leaf = path.split(".")
    for section in sections:
        settings = settings.model_fields[section].annotation  # type: ignore[assignment]
    return settings.model_fields[leaf]


def _names_text(names: list[str], name: str | None) -> str:
    """What --help says where the method is chosen by its name."""
    if not names:
        return ""
    return (
        f"\n\n--algorithm.name NAME picks the method, one of {', '.join(names)}; the settings "
        f"below are those of {name}."
    )


def _read_flags(
    settings: type[BaseModel], argv: list[str], shown: Values, more_help: str
) -> Values:
    """The flags that were given, as nested dicts of raw values; --help shows `shown`."""
    origin = settings.__pydantic_generic_metadata__["origin"] or settings
    text = (
        f"{origin.__doc__}\n\n--config FILE reads settings from a YAML file with the same "
        f"names (sections with settings below them); flags win over it.{more_help}"
    )
    given = tyro.cli(_mirror(settings, shown), args=argv, description=text)
    return _without_empty_sections(given)


def _mirror(settings: type[BaseModel], shown: Values) -> Any:
    """The settings class as a TypedDict whose keys may all be absent: tyro's view of it."""
    fields: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        value = shown.get(name)
        if is_section(field.annotation):
            section: Any = field.annotation
            mirror = _mirror(section, value if isinstance(value, dict) else {})
            text = (section.__doc__ or "").partition("\n")[0]
            fields[name] = Annotated[mirror, tyro.conf.arg(help=text)]
        else:
            fields[name] = _leaf(field, value)
    return TypedDict(settings.__name__.partition("[")[0], fields, total=False)  # type: ignore


def _leaf(field: FieldInfo, shown: Any) -> Any:
    """A flag's type for tyro: how many words it takes, and what --help says."""
    nargs = _nargs(field)

    def raw(words: list[str]) -> Any:
        if _is_tuple(field):
            return words
        return _raw(field, words[0]) if words else True

    spec: Any = PrimitiveConstructorSpec(
        nargs=nargs,
        metavar=_metavar(field.annotation),
        instance_from_str=raw,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )
    default = " ".join(map(str, shown)) or "none" if isinstance(shown, tuple | list) else shown
    arg = tyro.conf.arg(help=field.description, help_behavior_hint=f"(default: {default})")
    return Annotated[Any, spec, arg]


def _raw(field: FieldInfo, word: str) -> Any:
    if word in ("None", "none", "null") and NoneType in get_args(field.annotation):
        return None
    if get_origin(field.annotation) is dict:
        try:
            return yaml.safe_load(word)
        except yaml.YAMLError:
            pass
    return word


def _is_tuple(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _nargs(field: FieldInfo) -> Literal[1, "*"]:
    """One word, except for lists and for switches, which may stand without `True`."""
    return "*" if _is_tuple(field) or field.annotation is bool else 1


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if get_origin(annotation) is tuple:
        return f"[{_metavar(get_args(annotation)[0])} ...]"
    if get_origin(annotation) is dict:
        return "'{key: value}'"
    if NoneType in get_args(annotation):
        return "|".join(_metavar(a) for a in get_args(annotation))
    names = {bool: "[True|False]", int: "INT", float: "FLOAT", str: "STR", NoneType: "None"}
    return names.get(annotation, "VALUE")


def _without_empty_sections(values: Mapping[str, Any]) -> Values:
    kept: Values = {}
    for key, value in values.items():
        inner = _without_empty_sections(value) if isinstance(value, Mapping) else value
        if not isinstance(value, Mapping) or inner:
            kept[key] = inner
    return kept
