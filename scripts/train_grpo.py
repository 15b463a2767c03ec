"""Fine-tune a language model with GRPO; without arguments, in the built-in addition world."""

from lmpg.cli.main import main, train_by_name

if __name__ == "__main__":
    main(lambda: train_by_name("grpo"))
