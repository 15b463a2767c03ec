"""Fine-tune a causal language model with GRPO; without arguments, on addition."""

from lmpg.cli import main
from lmpg.recipes import addition
from lmpg.train import train

if __name__ == "__main__":
    main(lambda: train("grpo", addition))
