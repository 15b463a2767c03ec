"""Fine-tune a causal language model with REINFORCE; without arguments, in the reviews world."""

from lmpg.cli import main
from lmpg.recipes import reviews
from lmpg.train import train

if __name__ == "__main__":
    main(lambda: train("reinforce", reviews))
