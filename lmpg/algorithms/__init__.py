"""The algorithms, each one short file: its fields are the hyperparameters, two methods the method.

`assign_credit` turns a rollout into advantages, `loss_terms` a minibatch into per-step losses.
"""

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce import REINFORCE

ALGORITHMS = {"ppo": PPO, "reinforce": REINFORCE, "grpo": GRPO}
