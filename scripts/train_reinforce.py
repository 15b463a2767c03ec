"""Fine-tune a language model with REINFORCE; without arguments, in the built-in reviews world."""

from lmpg.cli import main
from lmpg.train import train

if __name__ == "__main__":
    main(lambda: train("reinforce"))
