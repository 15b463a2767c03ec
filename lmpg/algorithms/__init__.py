"""The algorithms, each one short file: its fields are the hyperparameters, two methods the method.

`assign_credit` turns a rollout into advantages, `loss_terms` a minibatch into per-step losses.
"""

import re

from lmpg.algorithms.a2c import A2C
from lmpg.algorithms.cispo import CISPO
from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.gspo import GSPO
from lmpg.algorithms.off_policy import OffPolicy
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from lmpg.algorithms.remax import ReMax
from lmpg.algorithms.rloo import RLOO
from lmpg.algorithms.sapo import SAPO
from lmpg.settings.section import Section

ALGORITHMS: dict[str, type[Section]] = {
    "ppo": PPO,
    "reinforce": REINFORCE,
    "rloo": RLOO,
    "remax": ReMax,
    "reinforce_plus_plus": ReinforcePlusPlus,
    "grpo": GRPO,
    "gspo": GSPO,
    "cispo": CISPO,
    "sapo": SAPO,
    "off_policy": OffPolicy,
    "a2c": A2C,
}


def algorithm_name(algorithm: type) -> str:
    """What `algorithm.name` in a YAML file calls an algorithm's class; stages have some too."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", algorithm.__name__).lower()
    return next((name for name, a in ALGORITHMS.items() if a is algorithm), words)
