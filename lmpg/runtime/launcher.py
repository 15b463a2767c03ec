"""The launcher of accelerate that started this process: its command line and its config file.

It tells a program through the environment what accelerate itself obeys. What it keeps to itself,
such as a number of processes that it did not start, is read here from where the user wrote it.
"""

from __future__ import annotations

import ctypes
import re
import signal
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

_LAUNCH = re.compile(r"(^|/)accelerate-launch$|(^|/|\.)accelerate[./]commands[./]launch(\.py)?$")
_ACCELERATE = re.compile(r"(^|/)accelerate$|(^|/|\.)accelerate_cli(\.py)?$")
_PREFIXES = {"fsdp_config": "fsdp_", "fp8_config": "fp8_", "dynamo_config": "dynamo_"}
"""Sections whose keys may stand without the prefix of the options that they are."""


@lru_cache(maxsize=1)
def told() -> dict[str, Any]:
    """What the launcher's command line and config file give, by the names of its options; {} where
    no launcher of accelerate's started this process. It lives as long as its processes."""
    try:
        for process in psutil.Process().parents():
            words = words_for_launcher(process.cmdline())
            if words is not None:
                return options(words, Path(process.cwd()))
    except psutil.Error:
        pass
    return {}


def has_shutdown_timeout() -> bool:
    """Whether torch's launcher, the parent, was told how long to wait after SIGTERM."""
    try:
        words = psutil.Process().parent().cmdline()  # type: ignore[union-attr]
    except (psutil.Error, AttributeError):
        return False
    return any(re.match("--shutdown[-_]timeout", word) for word in words)


def words_for_launcher(words: list[str]) -> list[str] | None:
    """What stands on a command line after `accelerate launch`; None where it is another program."""
    for i, word in enumerate(words):
        if _LAUNCH.search(word):
            return words[i + 1 :]
        if _ACCELERATE.search(word) and words[i + 1 : i + 2] == ["launch"]:
            return words[i + 2 :]
    return None


def options(words: list[str], folder: Path) -> dict[str, Any]:
    """The options that the words and the config file give; the words win, as they do there.

    folder: where the launcher was started.
    """
    from accelerate.commands.config.config_args import default_config_file  # slow
    from accelerate.commands.launch import launch_command_parser

    try:
        args = launch_command_parser().parse_args(words)
    except SystemExit:  # what it does not understand it has refused itself
        return {}
    given = {name: getattr(args, name) for name in getattr(args, "nondefault", ())}
    file = given.pop("config_file", None)
    if file is None and not args.cpu and Path(default_config_file).is_file():
        file = default_config_file
    of_file = in_file(folder / file) if file is not None else {}
    own = ("training_script", "training_script_args")
    return of_file | {name: value for name, value in given.items() if name not in own}


def in_file(path: Path) -> dict[str, Any]:
    """The options that a config file of accelerate's gives, those of its sections among them."""
    from accelerate.commands.config.config_args import load_config_from_file

    found: dict[str, Any] = {}
    for name, value in load_config_from_file(str(path)).to_dict().items():
        if not isinstance(value, dict):
            found[name] = value
            continue
        prefix = _PREFIXES.get(name, "")
        found |= {k if k.startswith(prefix) else prefix + k: v for k, v in value.items()}
    return found


def end_with_parent() -> None:
    """Let this process get SIGTERM when its parent ends (Linux): a launcher that is killed leaves
    its processes behind."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG
