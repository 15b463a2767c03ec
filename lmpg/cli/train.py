"""`lmpg train NAME --flags`: the names, and the method that a file names."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from lmpg.algorithms import ALGORITHMS
from lmpg.cli.flags import HELP, taken
from lmpg.cli.main import methods, train_by_name
from lmpg.language.stages import STAGES
from lmpg.settings.presets import config_file, preset_names
from lmpg.settings.section import Problems, UserError
from lmpg.settings.yaml_files import read_yaml


def train(argv: Sequence[str]) -> None:
    """`NAME --flags`; NAME may be left out where `--config FILE` holds `algorithm.name`."""
    if not argv or argv[0] in HELP:
        print(names())
    elif not argv[0].startswith("-"):
        train_by_name(argv[0], argv[1:])
    else:
        train_by_name(_name_in_file(argv), argv)


def _name_in_file(argv: Sequence[str]) -> str:
    problems = Problems()
    _, config = taken(list(argv), "--config", problems)
    problems.refuse()
    section = read_yaml(config_file(config)).get("algorithm") if config else None
    name = section.get("name") if isinstance(section, dict) else None
    if name is None:
        raise UserError(f"expected a method to train with before {argv[0]}\n{names()}")
    if name in preset_names() and name not in methods():
        raise UserError(
            f"{config}: algorithm.name = {name} is a preset, expected an algorithm; leave it out "
            f"and run `lmpg train {name} --config {config}`"
        )
    return str(name)


def names() -> str:
    """What can be trained, in a screen."""
    kinds = {
        "algorithms": list(ALGORITHMS),
        "stages": list(STAGES),
        "presets": [name for name in preset_names() if name not in methods()],
    }
    lines = [
        textwrap.fill(
            f"{kind}: {', '.join(named)}", 98, subsequent_indent="  ", break_on_hyphens=False
        )
        for kind, named in kinds.items()
    ]
    return "\n".join(
        [
            "usage: lmpg train NAME [--config FILE] [--section.key VALUE …]",
            "",
            *lines,
            "",
            "lmpg train NAME --help shows the settings of a method.",
        ]
    )
