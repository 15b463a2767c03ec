"""DPO of a causal language model; without arguments, in the built-in reviews world."""

from lmpg.cli import main
from lmpg.train import train

if __name__ == "__main__":
    main(lambda: train("dpo"))
