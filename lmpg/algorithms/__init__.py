"""The algorithms, each one short file: its fields are the hyperparameters, two methods the method.

`assign_credit` turns a rollout into advantages, `loss_terms` a minibatch into per-step losses.
"""

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.sections import Section

ALGORITHMS: dict[str, type[Section]] = {"ppo": PPO, "reinforce": REINFORCE, "grpo": GRPO}


def algorithm_name(algorithm: type) -> str:
    """What `algorithm.name` in a YAML file calls an algorithm's class."""
    return next((k for k, a in ALGORITHMS.items() if a is algorithm), algorithm.__name__.lower())
