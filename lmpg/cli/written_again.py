"""`lmpg report FOLDER`: a run's report, from what the run left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmpg.cli.flags import HELP
from lmpg.settings.section import UserError

USAGE = "usage: lmpg report FOLDER   (a run's folder; writes its report.html again)"


def report(argv: Sequence[str]) -> None:
    """Writes report.html from what the run left in its folder, and prints where it is."""
    if {*HELP} & {*argv}:
        print(USAGE)
        return
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError(f"expected the folder of one run\n{USAGE}")
    from lmpg.runs.folder import CONFIG, read_summary
    from lmpg.runs.printable import printable
    from lmpg.runs.report.write import before_after_lines, write_report

    folder = Path(argv[0]).expanduser()
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no run ({CONFIG} is missing); expected a run's folder")
    written = write_report(folder)
    print(printable(before_after_lines(read_summary(folder))))
    print(f"report: {written}")
