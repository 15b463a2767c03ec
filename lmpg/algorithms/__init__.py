"""The algorithms: each is one short file of formulas that see numbers only, no model and no text.

An algorithm's fields are its hyperparameters. Those that learn from rollouts have two methods:
`assign_credit` turns a rollout into advantages, `loss_terms` a minibatch into per-step losses.
Those that learn from a fixed data set have `loss_terms` alone: a loss per pair, answer or token.
"""

import re

from lmpg.algorithms.a2c import A2C
from lmpg.algorithms.cispo import CISPO
from lmpg.algorithms.fixed_data.bradley_terry import BradleyTerry
from lmpg.algorithms.fixed_data.dpo import DPO
from lmpg.algorithms.fixed_data.kto import KTO
from lmpg.algorithms.fixed_data.maximum_likelihood import MaximumLikelihood
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

OFFLINE_ALGORITHMS: dict[str, type[Section]] = {
    "dpo": DPO,
    "kto": KTO,
    "reward_model": BradleyTerry,
    "sft": MaximumLikelihood,
}


def algorithm_name(algorithm: type) -> str:
    """What `algorithm.name` in a YAML file calls an algorithm's class, textbook methods too."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", algorithm.__name__).lower()
    known = {**ALGORITHMS, **OFFLINE_ALGORITHMS}
    return next((name for name, a in known.items() if a is algorithm), words)
