"""`lmpg check NAME --flags`: a preflight of the run that `lmpg train NAME --flags` would be."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lmpg.cli.flags import HELP
from lmpg.cli.main import settings_of
from lmpg.language.missing import refuse_missing_paths
from lmpg.language.settings import LanguageSettings
from lmpg.settings.section import UserError

USAGE = """usage: lmpg check NAME --flags …   (NAME and flags as for lmpg train)

Makes everything that the run needs, tests the model, samples and scores a few responses, shows
them with their special tokens, and takes one step: memory, seconds, and mistakes that a run would
not refuse. Leaves no folder. Exit code 0: nothing was found; 1: something was, each in a line with
its fix; 2: the run would be refused."""


def check(argv: Sequence[str]) -> None:
    """`NAME --flags`; ends with code 1 where it finds traps."""
    if not argv or argv[0] in HELP or argv[0].startswith("-"):
        print(USAGE)
        return
    if argv[0] == "gym":
        raise UserError(
            "lmpg check gym: expected a method for language models. An agent's environment is "
            "looked at as `lmpg gym` begins (spaces, rewards, NaN), before its first step"
        )
    settings = settings_of(argv[0], argv[1:])
    refuse_missing_paths(settings)
    # imported here as they bring transformers along, for which a refusal need not wait
    from lmpg.runs.printable import printable
    from lmpg.runtime.processes import Processes

    if isinstance(settings, LanguageSettings):
        from lmpg.language.checked import check_language

        found = check_language(settings, argv[0])
    else:
        from lmpg.language.stages.checked_stage import check_stage

        found = check_stage(settings, argv[0])  # type: ignore[arg-type]
    if Processes().is_main:
        said = [f"trap: {printable(line)}" for line in found] or ["no traps found"]
        print("\n".join(said), flush=True)
    if found:
        sys.exit(1)
