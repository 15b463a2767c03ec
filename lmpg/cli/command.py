"""The program `lmpg`: `lmpg train NAME --section.key VALUE …` and `lmpg pipeline STAGE …`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from lmpg.algorithms import ALGORITHMS
from lmpg.cli.flags import taken
from lmpg.cli.main import main, methods, nothing_collected, train_by_name
from lmpg.language.stages import STAGES
from lmpg.settings.by_name import ByName
from lmpg.settings.raw import preset_names, read_yaml
from lmpg.settings.section import UserError

OTHERS: ByName[Callable[[Sequence[str]], None]] = ByName(
    {name: f"lmpg.cli.asking:{name}" for name in ("evaluate", "generate", "chat")}
)
"""Further commands by their names."""


def run(argv: Sequence[str]) -> None:
    """Carry out a command line, `argv` without the program's name."""
    command, *rest = argv or ["--help"]
    if command == "pipeline":
        with nothing_collected():
            from lmpg.cli.pipeline import pipeline  # not for --help: it needs torch

        pipeline(rest)
    elif command == "train":
        if rest[:1] in ([], ["-h"], ["--help"]):
            print(_usage())
        else:
            train_named(rest)
    elif command in OTHERS:
        OTHERS[command](rest)
    elif command in ("-h", "--help"):
        print(_usage())
    else:
        raise UserError(f"unknown command {command!r}\n{_usage()}")


def train_named(argv: Sequence[str]) -> None:
    """`NAME --flags`; NAME may be left out where `--config FILE` holds `algorithm.name`."""
    if not argv[0].startswith("-"):
        train_by_name(argv[0], argv[1:])
        return
    _, config = taken(list(argv), "--config")
    section = read_yaml(config).get("algorithm") if config else None
    name = section.get("name") if isinstance(section, dict) else None
    if name is None:
        raise UserError(f"expected a method to train with before {argv[0]}\n{_usage()}")
    if name in preset_names() and name not in methods():
        raise UserError(
            f"{config}: algorithm.name = {name} is a preset, expected an algorithm; leave it out "
            f"and run `lmpg train {name} --config {config}`"
        )
    train_by_name(str(name), argv)


def _usage() -> str:
    return (
        "usage: lmpg train NAME [--config FILE] [--section.key VALUE …]   "
        "(lmpg train NAME --help: all settings)\n"
        "       lmpg pipeline STAGE STAGE …   (lmpg pipeline: more)\n"
        f"algorithms: {', '.join(ALGORITHMS)}\n"
        f"stages: {', '.join(STAGES)}\n"
        f"presets: {', '.join(n for n in preset_names() if n not in methods())}"
    )


def entry() -> None:
    """What the installed program `lmpg` calls."""
    main(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    entry()
