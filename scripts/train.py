"""Train with any method: python scripts/train.py NAME; the same as `lmpg train NAME`."""

import sys

from lmpg.cli import main
from lmpg.command import run

if __name__ == "__main__":
    main(lambda: run(["train", *sys.argv[1:]]))
