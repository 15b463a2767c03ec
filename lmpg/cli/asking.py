"""`lmpg evaluate` and `lmpg generate`: flags become settings, results are printed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lmpg.cli import flags
from lmpg.cli.main import nothing_collected
from lmpg.language.missing import refuse_missing_paths
from lmpg.language.trained.command_settings import (
    GIVEN,
    AskingSettings,
    EvaluateSettings,
    GenerateSettings,
)
from lmpg.language.trained.of_run import START, below, refuse_lost_rewards, run_of
from lmpg.runs.files import write_text
from lmpg.runs.folder import fresh_name
from lmpg.runs.printable import printable
from lmpg.runs.tracking import as_json
from lmpg.settings.section import UserError

S = TypeVar("S", bound=AskingSettings)


@nothing_collected()
def settings_for(command: str, kind: type[S], argv: Sequence[str]) -> S:
    """The settings of a command: class defaults < a run's < a file's < flags; --help exits. Bad
    ones are refused, and so are paths where nothing lies."""
    line = flags.read(argv, f"lmpg {command}")
    given = flags.given_settings(kind, line)
    if line.help_on is None:
        refuse_lost_rewards(kind, given)
    look = partial(refuse_missing_paths, to_come=(START, GIVEN))
    settings = flags.settings_or_help(kind, line, below(kind, given), given, look=look)
    look(settings)
    return settings


def evaluate(argv: Sequence[str]) -> None:
    """`lmpg evaluate --flags`: prints what was measured and writes it to a JSON file."""
    settings = settings_for("evaluate", EvaluateSettings, argv)
    place = json_file(settings, "evaluations", "", str(settings.model.path))
    # imported here as they bring transformers along, for which a refusal need not wait
    from lmpg.language.trained import told
    from lmpg.language.trained.measured import evaluate
    from lmpg.runtime.processes import Processes

    found = evaluate(settings)
    if Processes().is_main:
        print("\n".join(told.lines(found)), flush=True)
        write_text(place, json.dumps(as_json(told.as_json(found)), ensure_ascii=False, indent=1))
        print(f"all responses: {place}", flush=True)


def generate(argv: Sequence[str]) -> None:
    """`lmpg generate PROMPT … --flags`: prints the responses to the prompts on the command line, of
    --data.path, or of the lines of standard input."""
    given, flags_given = _divided(argv)
    settings = settings_for("generate", GenerateSettings, flags_given)
    if given and settings.data.path != GIVEN:
        raise UserError(
            f"prompts are given twice, as words ({given[0]!r}) and by data.path = "
            f"{settings.data.path}, expected one of the two; leave the other out"
        )
    if not given and settings.data.path == GIVEN:
        given = _lines_of_input()
    from lmpg.language.trained.loaded import began_alone, loaded
    from lmpg.language.trained.responses import prompts_of, responses

    with contextlib.redirect_stdout(sys.stderr):  # what is said meanwhile is no response
        generator = loaded(settings, settings.data, began_alone(settings))
        prompts = prompts_of(settings, generator, given)
    several = len(prompts) * (1 if settings.greedy else settings.samples) > 1
    for found in responses(settings, generator, prompts):
        for number, response in enumerate(found, 1):
            if settings.jsonl:
                print(json.dumps(response.as_json(), ensure_ascii=sys.stdout.isatty()), flush=True)
            else:
                head = f"{response.head(number, len(found))}\n" if several else ""
                print(printable(head + response.shown(settings.show_special)), flush=True)


def _divided(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words in front of the flags, or behind a lone `--`; and the flags."""
    words = list(argv)
    first = next((i for i, word in enumerate(words) if word.startswith("--") or word == "-h"), None)
    given, rest = (words, []) if first is None else (words[:first], words[first:])
    if "--" in rest:
        cut = rest.index("--")
        given, rest = given + rest[cut + 1 :], rest[:cut]
    return given, rest


def _lines_of_input() -> list[str]:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(
            'no prompt is given, expected some: lmpg generate "a prompt" "another" --model.path '
            "…, or --data.path FILE, or a prompt a line on standard input"
        )
    lines = [line.rstrip("\n") for line in sys.stdin]
    if not any(map(str.strip, lines)):
        raise UserError("standard input holds no prompt, expected one a line")
    return [line for line in lines if line.strip()]


def json_file(settings: Any, folder: str, prefix: str, model: str) -> Path:
    """Where the results go: `output`, or a fresh file in `folder` that is named after the model or
    its run; refused now if they could not be written there."""
    if settings.output is not None:
        path = Path(settings.output).expanduser()
    else:
        stem = (run_of(model) or Path(model)).resolve().name
        path = Path(folder) / f"{prefix}{fresh_name(stem).name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise OSError(0, "it is a folder" if path.is_dir() else "its folder is write-protected")
    except OSError as error:
        raise UserError(
            f"output = {path} cannot be written ({error.strerror}), expected a file in a folder "
            "that you may write to; choose another --output"
        ) from None
    return path
