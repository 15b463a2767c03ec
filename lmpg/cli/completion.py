"""`lmpg completion SHELL`: what makes a shell complete commands, names and flags, by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from lmpg.cli.command import COMMANDS
from lmpg.cli.flags import HELP, number_of_words
from lmpg.cli.main import methods, settings_class
from lmpg.settings.presets import preset_names
from lmpg.settings.raw import field_of, paths_of
from lmpg.settings.section import Section, UserError

SHELLS = ("bash", "zsh", "tcsh")
USAGE = (
    "usage: lmpg completion bash|zsh|tcsh\n"
    "bash: lmpg completion bash > ~/.local/share/bash-completion/completions/lmpg\n"
    "zsh: lmpg completion zsh > _lmpg, in a folder of $fpath"
)
FILES = {"path", "eval_path", "tokenizer", "reference", "teacher", "models", "output_dir"}
"""Settings that may name a file or a folder, by their last part."""


def completion(argv: Sequence[str]) -> None:
    """Prints the script for a shell; it knows what is installed now."""
    if {*HELP} & {*argv}:
        print(USAGE)
        return
    if len(argv) != 1 or argv[0] not in SHELLS:
        raise UserError(f"expected one of {', '.join(SHELLS)} after completion\n{USAGE}")
    try:
        import shtab
    except ImportError:
        raise UserError(
            "lmpg completion needs the package shtab; install it: pip install shtab"
        ) from None
    print(shtab.complete(_parser(shtab.FILE), argv[0]))


def _parser(file: Any) -> argparse.ArgumentParser:
    """All commands and their words, as argparse has them. file: what completes a path."""
    from lmpg.gym.settings import GYM_METHODS, gym_settings_class
    from lmpg.language.trained.command_settings import (
        ChatSettings,
        EvaluateSettings,
        GenerateSettings,
    )

    names = sorted({*methods(), *preset_names()})
    language = [settings_class(name) for name in methods()]
    kinds: dict[str, Sequence[type[Section]]] = {
        "train": language,
        "check": language,
        "pipeline": language,
        "gym": [gym_settings_class(name) for name in GYM_METHODS],
        "evaluate": [EvaluateSettings],
        "generate": [GenerateSettings],
        "chat": [ChatSettings],
    }
    parser = argparse.ArgumentParser("lmpg")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    for command, row in COMMANDS.items():
        own = commands.add_parser(command, help=row.does)
        if command in ("train", "check", "pipeline"):
            own.add_argument("name", choices=names, nargs="+" if command == "pipeline" else 1)
        elif command == "completion":
            own.add_argument("shell", choices=SHELLS)
        elif command not in kinds:
            own.add_argument("path", nargs="*").complete = file  # type: ignore[attr-defined]
        if command == "gym":
            own.add_argument("--algorithm.name", choices=GYM_METHODS)
        if command in kinds:
            own.add_argument("--config").complete = file  # type: ignore[attr-defined]
        for path, field in _fields(kinds.get(command, ())).items():
            _add(own, path, field, file)
    return parser


def _fields(kinds: Sequence[type[Section]]) -> dict[str, FieldInfo]:
    """The settings of all these methods by their dotted names; a flag that only others have is
    refused once it is given."""
    return {path: field_of(kind, path) for kind in reversed(kinds) for path in paths_of(kind)}


def _add(parser: argparse.ArgumentParser, path: str, field: FieldInfo, file: Any) -> None:
    kind = field.annotation
    choices = get_args(kind) if get_origin(kind) is Literal else None
    if kind is bool:
        choices = (True, False)
    text = (field.description or "").partition("\n")[0].replace("%", "%%")
    flag, several = f"--{path}".replace("_", "-"), number_of_words(field) == "*"
    added = parser.add_argument(flag, choices=choices, nargs="*" if several else None, help=text)
    if path.rpartition(".")[2] in FILES:
        added.complete = file  # type: ignore[attr-defined]
