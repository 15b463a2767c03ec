"""Distil a language model from a teacher, on its own responses; without arguments, on addition."""

from lmpg.cli.main import main, train_by_name

if __name__ == "__main__":
    main(lambda: train_by_name("distillation"))
