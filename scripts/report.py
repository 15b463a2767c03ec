"""Write a run's report again and show before and after: python scripts/report.py FOLDER."""

import sys

from lmpg.cli.main import main
from lmpg.cli.written_again import report

if __name__ == "__main__":
    main(lambda: report(sys.argv[1:]))
