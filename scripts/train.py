"""Train with any method: python scripts/train.py NAME; the same as `lmpg train NAME`."""

import sys

from lmpg.cli.command import run
from lmpg.cli.main import main

if __name__ == "__main__":
    main(lambda: run(["train", *sys.argv[1:]]))
