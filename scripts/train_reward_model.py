"""Train a reward model on preferences; without arguments, in the built-in reviews world."""

from lmpg.cli.main import main
from lmpg.cli.train import train

if __name__ == "__main__":
    main(lambda: train("reward_model"))
