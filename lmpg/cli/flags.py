"""Flags and `--config FILE` become raw settings, with their names checked.

Words are handed on as they stand: pydantic converts and checks them together with everything
else, so that all errors look alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lmpg.algorithms import ALGORITHMS, algorithm_name
from lmpg.cli.help import show_help
from lmpg.settings.hints import did_you_mean_setting
from lmpg.settings.presets import config_file
from lmpg.settings.raw import (
    RawSettings,
    field_of,
    is_list,
    layered,
    merged,
    misplaced,
    paths_of,
    placed,
    settled,
    with_lists,
)
from lmpg.settings.section import Problems, Section
from lmpg.settings.yaml_files import read_yaml

S = TypeVar("S", bound=Section)
HELP = ("-h", "--help")


@dataclass(frozen=True)
class CommandLine:
    """The words of a command line, taken apart.

    flags: each flag (written with dashes) and the words after it. config: the `--config` file.
    from_file: the settings in it. algorithm: the `algorithm.name` that the flags or the file give.
    help_on: the words behind --help, None without it. program: what the line begins with. problems:
    what is known to be wrong with the line by now.
    """

    flags: list[tuple[str, list[str]]]
    config: str | None
    from_file: RawSettings
    algorithm: str | None
    help_on: list[str] | None
    program: str
    problems: Problems


def read(argv: Sequence[str], program: str = "lmpg") -> CommandLine:
    """Take a command line apart and read its file; the names in both are not looked at yet.

    program: what stands before `argv`, for --help.
    """
    problems = Problems()
    words, config = taken(list(argv), "--config", problems)
    words, name = taken(words, "--algorithm.name", problems)
    from_file: RawSettings = {}
    with problems.gathered():
        from_file = read_yaml(config_file(config)) if config else {}
    section = from_file.get("algorithm")
    name_in_file = section.pop("name", None) if isinstance(section, dict) else None
    flags = groups(words)
    asked = [word for flag, words in flags if flag in HELP for word in words]
    help_on = asked if {*HELP} & {*words} else None
    flags = [(flag, words) for flag, words in flags if flag not in HELP]
    algorithm = name or name_in_file
    return CommandLine(flags, config, from_file, algorithm, help_on, program, problems)


def taken(argv: list[str], flag: str, problems: Problems) -> tuple[list[str], str | None]:
    """`argv` without `flag VALUE` (or `flag=VALUE`), and the value; a problem where it has none."""
    for i, word in enumerate(argv):
        if word.startswith(f"{flag}="):
            return argv[:i] + argv[i + 1 :], word.partition("=")[2]
        if word == flag:
            if i + 1 == len(argv) or argv[i + 1].startswith("--"):
                problems.append(f"{flag} needs a value after it")
                return argv[:i] + argv[i + 1 :], None
            return argv[:i] + argv[i + 2 :], argv[i + 1]
    return argv, None


def groups(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each flag (written with dashes) and the words up to the next one."""
    groups: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--") or word in HELP:
            flag, equals, value = word.partition("=")
            groups.append((flag.replace("_", "-"), [value] if equals else []))
        elif not groups:  # what belongs to no flag
            groups.append((word, []))
        else:
            groups[-1][1].append(word)
    return groups


def refuse_other_algorithm(settings: type[Section], line: CommandLine) -> None:
    """A problem where `algorithm.name` asks for another algorithm than that of `settings`."""
    name, field = line.algorithm, settings.model_fields.get("algorithm")
    own = algorithm_name(field.annotation) if field else name  # type: ignore[arg-type]
    if name in (None, own):
        return
    if name not in ALGORITHMS:
        expected = ", ".join(ALGORITHMS)
        line.problems.append(f"algorithm.name = {name!r}: expected one of {expected}")
    else:
        line.problems.append(
            f"algorithm.name = {name!r}, but this script trains with {own}; "
            f"run `lmpg train {name}` instead, or leave algorithm.name out"
        )


def given_settings(settings: type[Section], line: CommandLine) -> RawSettings:
    """What the user gave of `settings`: the flags over the file, unconverted. What `settings` does
    not have, and a wrong number of values, becomes one of the line's problems."""
    wrong, paths = _wrong_flags(settings, line.flags), _paths_by_flag(settings)
    line.problems.extend(misplaced(settings, line.from_file, str(line.config)))
    line.problems.extend(wrong.values())
    from_flags: RawSettings = {}
    for number, (flag, words) in enumerate(line.flags):
        if number in wrong:
            continue
        *sections, leaf = paths[flag].split(".")
        place = from_flags
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = _raw(field_of(settings, paths[flag]), words)
    from_file = with_lists(settings, placed(settings, line.from_file))
    return merged(from_file, from_flags)


def _paths_by_flag(settings: type[BaseModel]) -> dict[str, str]:
    return {f"--{path}".replace("_", "-"): path for path in paths_of(settings)}


def _wrong_flags(settings: type[BaseModel], flags: list[tuple[str, list[str]]]) -> dict[int, str]:
    """One line for each flag that is unknown, has no value or too many, or stands there twice, by
    its place among the flags."""
    known = _paths_by_flag(settings)
    seen: set[str] = set()
    problems = {}
    for number, (flag, words) in enumerate(flags):
        if flag not in known:
            problems[number] = _unknown(flag, words, list(known.values()))
        elif flag in seen:
            problems[number] = f"{flag} stands there twice; give it once, with all its values"
        elif number_of_words(field_of(settings, known[flag])) == 1 and len(words) != 1:
            given = f"takes one value, not {' '.join(words)}" if words else "needs a value after it"
            problems[number] = f"{flag} {given}"
        seen.add(flag)
    return problems


def _unknown(flag: str, words: list[str], known: list[str]) -> str:
    given = " ".join([flag, *words])
    if not flag.startswith("--"):
        if "model.path" in known and Path(flag).is_dir():  # as other commands take a run
            return f"unexpected {given!r}; a model, or a run that has one: --model.path {flag}"
        return f"unexpected {given!r}; settings are given as --section.name VALUE, see --help"
    hint = did_you_mean_setting(flag, known) or "see --help all for all flags"
    return f"unknown flag {given}; {hint}"


def _raw(field: FieldInfo, words: list[str]) -> Any:
    """A flag's words as the value that pydantic is given; a switch may stand without `True`."""
    if is_list(field.annotation):
        return words
    word = words[0] if words else True
    if word in ("None", "none", "null") and NoneType in get_args(field.annotation):
        return None
    if get_origin(field.annotation) is dict:
        try:
            return yaml.safe_load(str(word))
        except yaml.YAMLError:
            pass
    return word


def number_of_words(field: FieldInfo) -> Literal[1, "*"]:
    """One word, except for lists and for switches."""
    return "*" if is_list(field.annotation) or field.annotation is bool else 1


def settings_or_help(
    settings: type[S],
    line: CommandLine,
    preset: RawSettings,
    given: RawSettings,
    names: Sequence[str] = (),
    look: Callable[[S], object] = lambda _: None,
) -> S:
    """The settings object: class defaults < `preset` < what the user gave. Where --help is asked
    for, shows it with these values and exits. UserError with all that is wrong with the line.

    names: of the methods that `--algorithm.name` may pick, where it may. look: raises for what is
    wrong with the settings elsewhere, asked where something else is wrong already.
    """
    values = layered(settings, preset, given)
    if line.help_on is not None and not line.problems:
        show_help(settings, values, line.help_on, line.program, names)
    return settled(settings, values, line.problems, look)
