"""Train a gymnasium agent: python scripts/train_gym.py --env.id CartPole-v1"""

from lmpg.cli.main import main, train_agent

if __name__ == "__main__":
    main(train_agent)
