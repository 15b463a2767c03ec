"""The algorithms: each is one short file of formulas that see numbers only, no model and no text.

An algorithm's fields are its hyperparameters. Those that learn from rollouts have two methods:
`assign_credit` turns a rollout into advantages, `loss_terms` a minibatch into per-step losses.
Those that learn from a fixed data set have `loss_terms` alone: a loss per pair, answer or token.
"""

import re

from lmpg.settings.by_name import ByName
from lmpg.settings.section import Section

ALGORITHMS: ByName[type[Section]] = ByName(
    {
        "ppo": "lmpg.algorithms.ppo:PPO",
        "reinforce": "lmpg.algorithms.reinforce:REINFORCE",
        "rloo": "lmpg.algorithms.rloo:RLOO",
        "remax": "lmpg.algorithms.remax:ReMax",
        "reinforce_plus_plus": "lmpg.algorithms.reinforce_plus_plus:ReinforcePlusPlus",
        "grpo": "lmpg.algorithms.grpo:GRPO",
        "gspo": "lmpg.algorithms.gspo:GSPO",
        "gmpo": "lmpg.algorithms.gmpo:GMPO",
        "cispo": "lmpg.algorithms.cispo:CISPO",
        "sapo": "lmpg.algorithms.sapo:SAPO",
        "raft": "lmpg.algorithms.raft:RAFT",
        "distillation": "lmpg.algorithms.distillation:Distillation",
        "off_policy": "lmpg.algorithms.off_policy:OffPolicy",
        "a2c": "lmpg.algorithms.a2c:A2C",
    }
)

OFFLINE_ALGORITHMS: ByName[type[Section]] = ByName(
    {
        "dpo": "lmpg.algorithms.fixed_data.dpo:DPO",
        "kto": "lmpg.algorithms.fixed_data.kto:KTO",
        "reward_model": "lmpg.algorithms.fixed_data.bradley_terry:BradleyTerry",
        "sft": "lmpg.algorithms.fixed_data.maximum_likelihood:MaximumLikelihood",
    }
)


def algorithm_name(algorithm: type) -> str:
    """What `algorithm.name` in a YAML file calls an algorithm's class, textbook methods too."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", algorithm.__name__).lower()
    return ALGORITHMS.name_of(algorithm) or OFFLINE_ALGORITHMS.name_of(algorithm) or words
