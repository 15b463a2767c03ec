"""Runs one after another in the processes that a launcher started: FILE.json of [name, flags]."""

import json
import sys
from pathlib import Path

from lmpg.cli.main import main
from tests.support.programs import run_here


def run_all() -> None:
    for algorithm, flags in json.loads(Path(sys.argv[1]).read_text()):
        run_here(algorithm, flags)


if __name__ == "__main__":
    main(run_all)
