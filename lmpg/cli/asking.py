"""`lmpg evaluate`, `lmpg generate` and `lmpg chat`: flags become settings, results are printed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from lmpg.cli import flags
from lmpg.cli.main import nothing_collected
from lmpg.language.missing import refuse_missing_paths
from lmpg.language.trained.command_settings import AskingSettings, EvaluateSettings
from lmpg.language.trained.of_run import START, below, run_of
from lmpg.runs.files import write_text
from lmpg.runs.folder import fresh_name
from lmpg.runs.tracking import as_json
from lmpg.settings.section import UserError

S = TypeVar("S", bound=AskingSettings)


@nothing_collected()
def _settings(kind: type[S], argv: Sequence[str]) -> S:
    """The settings of a command: class defaults < a run's < a file's < flags; --help exits."""
    line = flags.read(argv)
    given = flags.given_settings(kind, line)
    return flags.settings_or_help(kind, line, below(kind, given), given)


def evaluate(argv: Sequence[str]) -> None:
    """`lmpg evaluate --flags`: prints what was measured and writes it to a JSON file."""
    settings = _settings(EvaluateSettings, argv)
    refuse_missing_paths(settings, (START,))
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
