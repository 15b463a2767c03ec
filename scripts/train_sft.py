"""Fine-tune a causal language model on texts; without arguments, in the built-in reviews world."""

from lmpg.cli import main
from lmpg.recipes import reviews
from lmpg.train_offline import train_sft

if __name__ == "__main__":
    main(lambda: train_sft(reviews.supervised, reviews.SUPERVISED))
