"""Settings that would train nothing are refused before any work."""

import pytest

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.off_policy import OffPolicy
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from lmpg.gym.settings import GymSettings
from lmpg.language.settings import LanguageSettings
from lmpg.settings.section import UserError
from tests.settings.test_config import NO_KL, built
from tests.support.planted import catches

ONE = {"rollout_size": 1, "minibatch_size": 1}


@catches("one response compared with itself")
@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("reinforce", REINFORCE),
        ("off_policy", OffPolicy),
        ("reinforce_plus_plus", ReinforcePlusPlus),
    ],
)
def test_one_response_alone_teaches_nothing_where_responses_are_compared(name, algorithm):
    with pytest.raises(UserError, match=rf"rollout_size = 1 with algorithm\.name = {name}, which"):
        built(LanguageSettings[algorithm], update=ONE)


def test_one_response_is_enough_where_there_is_something_else_to_compare_with():
    built(LanguageSettings[PPO], update=ONE)
    built(LanguageSettings[REINFORCE], update=ONE, algorithm={"baseline": "ema"})
    built(LanguageSettings[ReinforcePlusPlus], update=ONE, rewards={"process": "step"})


def test_one_environment_step_alone_teaches_nothing():
    with pytest.raises(UserError, match=r"rollout_size = 1 with algorithm\.name = ppo"):
        built(GymSettings[PPO], algorithm=NO_KL, update=ONE, env={"num_envs": 1})


def test_a_minibatch_of_one_row_cannot_be_whitened():
    algorithm = {"whiten_minibatches": True}
    with pytest.raises(UserError, match=r"minibatch_size = 1 with algorithm\.whiten_minibatches"):
        built(LanguageSettings[PPO], update={"minibatch_size": 1}, algorithm=algorithm)


def test_a_critics_warm_up_needs_a_critic_and_leaves_the_policy_time_to_learn():
    update = {"critic_warmup": 4}
    with pytest.raises(UserError, match=r"critic_warmup = 4, but algorithm\.name = grpo has no cr"):
        built(LanguageSettings[GRPO], update=update)
    with pytest.raises(UserError, match=r"critic_warmup = 4, but the run has 4 iterations"):
        built(LanguageSettings[PPO], update=update, run={"total_steps": 4})
    of_steps = {"algorithm": NO_KL, "update": {"rollout_size": 64, **update}}
    with pytest.raises(UserError, match=r"critic_warmup = 4, but the run has 4 iterations"):
        built(GymSettings[PPO], **of_steps, run={"total_timesteps": 200})
    built(GymSettings[PPO], **of_steps, run={"total_timesteps": 257})


def test_a_length_adaptive_lambda_is_refused_where_rollouts_cut_episodes():
    with pytest.raises(UserError, match=r"algorithm\.lam_alpha = 0\.05, .* to none"):
        built(GymSettings[PPO], algorithm={**NO_KL, "lam_alpha": 0.05})
