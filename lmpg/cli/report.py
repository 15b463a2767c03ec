"""Write a run's report.html anew: `python -m lmpg.cli.report RUN_FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from lmpg.runs.folder import read_summary
from lmpg.runs.report.write import before_after_lines, write_report

if __name__ == "__main__":
    written = write_report(Path(sys.argv[1]))
    print(before_after_lines(read_summary(Path(sys.argv[1]))))
    print(f"report: {written}")
