"""Several stages in one command: python scripts/pipeline.py sft reward_model ppo."""

import sys

from lmpg.cli.main import main
from lmpg.cli.pipeline import pipeline

if __name__ == "__main__":
    main(lambda: pipeline(sys.argv[1:]))
