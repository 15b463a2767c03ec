"""Fine-tune a language model on the best of its own responses; without arguments, on addition."""

from lmpg.cli.main import main, train_by_name

if __name__ == "__main__":
    main(lambda: train_by_name("raft"))
