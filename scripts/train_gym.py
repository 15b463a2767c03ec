"""Train a gymnasium agent: python scripts/train_gym.py --env.id CartPole-v1"""

import sys
from pathlib import Path

from lmpg.cli import main
from lmpg.train_gym import train

PRESETS = Path(__file__).resolve().parent.parent / "configs" / "gym"

if __name__ == "__main__":
    main(lambda: train(PRESETS, sys.argv[1:]))
