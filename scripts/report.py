"""Write a run's report again and show before and after: python scripts/report.py FOLDER."""

import sys
from pathlib import Path

from lmpg.cli.main import main
from lmpg.runs.folder import read_summary
from lmpg.runs.report.write import before_after_lines, write_report


def report(folder: Path) -> None:
    """Writes report.html from what the run left in its folder, and prints where it is."""
    written = write_report(folder)
    print(before_after_lines(read_summary(folder)))
    print(f"report: {written}")


if __name__ == "__main__":
    main(lambda: report(Path(sys.argv[1])))
