"""`lmpg diagnose variance` and `lmpg diagnose overoptimisation`: a table, a JSON file, a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmpg.cli import flags
from lmpg.cli.asking import json_file, settings_for
from lmpg.cli.flags import HELP
from lmpg.cli.main import nothing_collected
from lmpg.language.diagnose.diagnose_settings import OveroptimisationSettings, VarianceSettings
from lmpg.language.trained.of_run import required_run
from lmpg.runs.files import write_text
from lmpg.runs.tracking import as_json
from lmpg.settings.hints import did_you_mean
from lmpg.settings.section import UserError

USAGE = """usage: lmpg diagnose variance --model.path … --data.path … --rewards.functions …
       lmpg diagnose overoptimisation RUN --gold …

variance          what each estimator of the policy gradient gives on this model, for equal samples
overoptimisation  a run's score and a gold score that it never saw, over the KL

lmpg diagnose variance --help and lmpg diagnose overoptimisation --help say more."""


def diagnose(argv: Sequence[str]) -> None:
    """`lmpg diagnose WHAT --flags`: prints a table, writes a JSON file and a page with pictures."""
    what, *rest = argv or ["--help"]
    commands = {"variance": _variance, "overoptimisation": _overoptimisation}
    if what in HELP:
        print(USAGE)
    elif what in commands:
        commands[what](rest)
    else:
        raise UserError(
            f"unknown diagnosis {what!r}; {did_you_mean(what, commands)}expected one of "
            f"{', '.join(commands)}"
        )


def _variance(argv: Sequence[str]) -> None:
    settings = settings_for("diagnose variance", VarianceSettings, argv)
    place = json_file(settings, "diagnoses", "variance-", str(settings.model.path))
    # imported here as they bring transformers along, for which a refusal need not wait
    from lmpg.language.diagnose import variance_told as told
    from lmpg.language.diagnose.gradient_variance import measure

    found = measure(settings)
    _written(place, told.lines(found), told.as_json(found), told.page(found))


def _overoptimisation(argv: Sequence[str]) -> None:
    kind = OveroptimisationSettings
    run = argv[0] if argv and not argv[0].startswith("-") else None
    with nothing_collected():
        line = flags.read(argv[run is not None :], "lmpg diagnose overoptimisation RUN")
        if run is None and line.help_on is None:
            line.problems.append("RUN is missing, expected the folder of a run before the flags")
        given = flags.given_settings(kind, line)
        settings = flags.settings_or_help(kind, line, {}, given)
    required_run(str(run))
    place = json_file(settings, "diagnoses", "overoptimisation-", str(run))
    from lmpg.language.diagnose import overoptimisation_told as told
    from lmpg.language.diagnose.overoptimisation import follow
    from lmpg.language.trained.loaded import refuse_several
    from lmpg.runtime.processes import Processes

    refuse_several(Processes())
    found = follow(str(run), settings)
    _written(place, told.lines(found), told.as_json(found), told.page(found))


def _written(place: Path, lines: list[str], numbers: dict[str, Any], page: str) -> None:
    """Prints the lines, writes the numbers to `place` and the page beside it."""
    print("\n".join(lines), flush=True)
    write_text(place, json.dumps(as_json(numbers), ensure_ascii=False, indent=1))
    beside = place.with_suffix(".html")
    write_text(beside, page)
    print(f"numbers: {place}\npictures: {beside}", flush=True)
