"""DPO of a causal language model; without arguments, in the built-in reviews world."""

from lmpg.cli.main import main, train_by_name

if __name__ == "__main__":
    main(lambda: train_by_name("dpo"))
