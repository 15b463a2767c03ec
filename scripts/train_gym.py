"""Train a gymnasium agent: python scripts/train_gym.py --env.id CartPole-v1"""

import sys

from lmpg.cli import main
from lmpg.presets import configs
from lmpg.train_gym import train_gym

if __name__ == "__main__":
    main(lambda: train_gym(configs("gym"), sys.argv[1:]))
