"""Textbook methods whose update is not minibatch SGD on a loss, each in one short file.

Methods on top of `batches` learn from rollouts; those on top of `incremental` from single steps of
one environment.
"""

from lmpg.gym.classic.average_reward import AverageReward
from lmpg.gym.classic.episodic_reinforce import EpisodicReinforce
from lmpg.gym.classic.finite_differences import FiniteDifferences
from lmpg.gym.classic.lstd_actor_critic import LstdActorCritic
from lmpg.gym.classic.natural_actor_critic import NaturalActorCritic
from lmpg.gym.classic.natural_policy_gradient import NaturalPolicyGradient
from lmpg.gym.classic.qac import QAC
from lmpg.gym.classic.td_actor_critic import TdActorCritic
from lmpg.gym.classic.td_lambda import TdLambda
from lmpg.gym.classic.trpo import TRPO
from lmpg.settings.section import Section

METHODS: dict[str, type[Section]] = {
    "episodic_reinforce": EpisodicReinforce,
    "td_actor_critic": TdActorCritic,
    "td_lambda": TdLambda,
    "qac": QAC,
    "lstd_actor_critic": LstdActorCritic,
    "average_reward": AverageReward,
    "natural_policy_gradient": NaturalPolicyGradient,
    "natural_actor_critic": NaturalActorCritic,
    "trpo": TRPO,
    "finite_differences": FiniteDifferences,
}
