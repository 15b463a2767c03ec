"""Train a gymnasium agent: python scripts/train_gym.py --env.id CartPole-v1"""

import sys

from lmpg.cli.main import main
from lmpg.gym.program import train_gym
from lmpg.settings.presets import configs

if __name__ == "__main__":
    main(lambda: train_gym(configs("gym"), sys.argv[1:]))
