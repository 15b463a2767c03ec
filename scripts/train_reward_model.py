"""Train a reward model on preferences; without arguments, in the built-in reviews world."""

from lmpg.cli import main
from lmpg.recipes import reviews
from lmpg.train_offline import train_reward_model

if __name__ == "__main__":
    main(lambda: train_reward_model(reviews.preferences, reviews.PREFERENCES))
