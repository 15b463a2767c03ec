"""Fine-tune a language model with GRPO; without arguments, in the built-in addition world."""

from lmpg.cli import main
from lmpg.train import train

if __name__ == "__main__":
    main(lambda: train("grpo"))
