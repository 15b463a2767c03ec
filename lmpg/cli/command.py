"""The program `lmpg`: each of its commands takes the words behind its name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lmpg import __version__
from lmpg.runs.console import lasting_console
from lmpg.settings.by_name import ByName
from lmpg.settings.hints import did_you_mean


class Command(NamedTuple):
    """A row of the table: the words that follow the name, what it does, and its function."""

    words: str
    does: str
    place: str


COMMANDS = {
    "train": Command(
        "NAME --flags …",
        "train a language model by any method, stage or preset",
        "lmpg.cli.train:train",
    ),
    "pipeline": Command(
        "STAGE STAGE … --flags …",
        "stages one after another, such as sft reward_model ppo",
        "lmpg.cli.pipeline:pipeline",
    ),
    "check": Command(
        "NAME --flags …",
        "try a run out: what it needs, and mistakes with their fixes",
        "lmpg.cli.checking:check",
    ),
    "gym": Command(
        "--env.id ENV --flags …",
        "train an agent in a gymnasium environment",
        "lmpg.cli.main:train_agent",
    ),
    "evaluate": Command(
        "--flags …",
        "measure a model: score, pass@k, greedy; compare with another",
        "lmpg.cli.asking:evaluate",
    ),
    "generate": Command(
        "PROMPT … --flags …",
        "let a model answer prompts",
        "lmpg.cli.asking:generate",
    ),
    "chat": Command("--flags …", "talk with a model", "lmpg.cli.chat_loop:chat"),
    "runs": Command("FOLDER", "list the runs in a folder", "lmpg.cli.runs_beside:runs"),
    "compare": Command(
        "RUN RUN …",
        "curves of runs side by side, over seeds, on one page",
        "lmpg.cli.runs_beside:compare",
    ),
    "completion": Command(
        "bash|zsh|tcsh",
        "print what completes commands, names and flags there",
        "lmpg.cli.completion:completion",
    ),
    "diagnose": Command(
        "WHAT --flags …",
        "variance: of each gradient estimator; overoptimisation: of a run",
        "lmpg.cli.diagnosing:diagnose",
    ),
    "report": Command("FOLDER", "write a run's report.html again", "lmpg.cli.written_again:report"),
}
"""All commands by their names; the modules are imported when a command is given."""


def run(argv: Sequence[str]) -> None:
    """Carry out a command line, `argv` without the program's name. What shows the commands alone
    need not wait for the settings of all methods."""
    command, *rest = argv or ["--help"]
    if command == "help" and rest:
        run([*rest, "--help"])
    elif command in ("-h", "--help", "help"):
        print(overview())
    elif command in ("-V", "--version", "version"):
        print(f"lmpg {__version__}")
    elif command in COMMANDS:
        from lmpg.cli.main import nothing_collected

        places: ByName[Callable] = ByName({command: COMMANDS[command].place})
        with nothing_collected():
            function = places[command]
        function(rest)
    else:
        from lmpg.settings.section import UserError

        raise UserError(
            f"unknown command {command!r}; {_meant(command)}expected one of {', '.join(COMMANDS)}"
        )


def _meant(command: str) -> str:
    """What a word that is no command stands for: a method without `train`, or a command."""
    from lmpg.language.methods import methods  # imported here for this refusal alone
    from lmpg.settings.presets import preset_names

    if command in {*methods(), *preset_names()}:
        return f"did you mean lmpg train {command}? "
    return did_you_mean(command, COMMANDS)


def overview() -> str:
    """What the program can do, in a screen."""
    width = max(len(f"{name} {row.words}") for name, row in COMMANDS.items())
    rows = [f"  {f'{name} {row.words}':{width}}  {row.does}" for name, row in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lmpg COMMAND …",
            "",
            *rows,
            "",
            "lmpg COMMAND --help says more; lmpg train --help lists the methods; lmpg --version.",
        ]
    )


def entry() -> None:
    """What the installed program `lmpg` calls."""
    if sys.argv[1:2] in ([], ["-h"], ["--help"], ["-V"], ["--version"]):
        with lasting_console():
            run(sys.argv[1:])
        return
    from lmpg.cli.main import main

    main(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    entry()
