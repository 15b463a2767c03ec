"""Coefficients that change over a run: adapted to a target, annealed, always validated."""

import pytest

from lmpg.algorithms.a2c import A2C
from lmpg.algorithms.cispo import CISPO
from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.gspo import GSPO
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from lmpg.gym.settings import GymSettings
from lmpg.language.settings import LanguageSettings
from lmpg.settings.raw import defaults_of, merged, validated
from lmpg.settings.section import UserError
from lmpg.training.annealing import annealed, with_fields
from lmpg.training.kl_controller import adapted
from lmpg.training.settings import UpdateSettings
from tests.support.planted import catches

METRICS = {"objective/kl": 6.0, "policy/last_kl": 0.1}


@catches("the KL controller changes β by more than 20 % a step for a large rollout")
def test_the_kl_coefficient_follows_the_kl_of_the_responses_in_proportion():
    algorithm = PPO(kl_coef=1.0, kl_target=5.0, kl_horizon=100)
    assert adapted(algorithm, METRICS, 50) == pytest.approx({"kl_coef": 1.1})
    assert adapted(algorithm, METRICS, 100) == pytest.approx({"kl_coef": 1.2})
    assert adapted(algorithm, METRICS, 9999) == pytest.approx({"kl_coef": 1.2})
    assert adapted(GRPO(kl_coef=1.0, kl_target=6.0), METRICS, 99) == {"kl_coef": 1.0}


def test_the_penalty_doubles_and_halves_by_the_kl_of_the_last_minibatch():
    for target, expected in ((0.01, 2.0), (0.1, 1.0), (1.0, 0.5)):
        algorithm = PPO(penalty_coef=1.0, penalty_target=target)
        assert adapted(algorithm, METRICS, 50) == {"penalty_coef": expected}


def test_nothing_is_adapted_without_a_target():
    assert adapted(PPO(), {}, 50) == {}


@catches("annealing begins one step early")
def test_annealed_settings_go_down_to_nothing_in_equal_steps():
    settings = UpdateSettings(anneal=("clip", "entropy_coef"))
    algorithm = PPO(clip=0.2, entropy_coef=0.1)
    made = [annealed(algorithm, settings, step, 4) for step in (1, 2, 4)]
    assert [a.clip for a in made] == pytest.approx([0.2, 0.15, 0.05])
    assert [a.entropy_coef for a in made] == pytest.approx([0.1, 0.075, 0.025])
    assert annealed(algorithm, UpdateSettings(), 3, 4) is algorithm


def test_a_changed_coefficient_is_validated():
    with pytest.raises(ValueError, match="kl_coef"):
        with_fields(PPO(), {"kl_coef": -1.0})


@pytest.mark.parametrize(
    ("settings", "clip", "share", "message"),
    [
        (LanguageSettings[PPO], 0.2, 1, r"target_clip_fraction = 1: expected less than 1"),
        (
            LanguageSettings[PPO],
            None,
            0.5,
            r"target_clip_fraction = 0\.5, but .* = ppo clips nothi",
        ),
        (GymSettings[PPO], None, 0.5, r"algorithm\.name = ppo clips nothing here"),
        (LanguageSettings[CISPO], ..., 0.5, r"algorithm\.name = cispo clips nothing here"),
        (GymSettings[A2C], ..., 0.5, r"algorithm\.name = a2c clips nothing here"),
    ],
)
def test_updates_cannot_end_at_a_share_of_clipped_steps_where_none_is(
    settings, clip, share, message
):
    algorithm = {"kl_coef": 0.0} | ({} if clip is ... else {"clip": clip})
    given = {"algorithm": algorithm, "update": {"target_clip_fraction": share}}
    with pytest.raises(UserError, match=message):
        validated(settings, merged(defaults_of(settings), given))


@pytest.mark.parametrize("algorithm", [PPO, GRPO, GSPO, ReinforcePlusPlus])
def test_updates_can_end_at_a_share_of_clipped_steps_where_there_is_a_clip(algorithm):
    settings = LanguageSettings[algorithm]
    given = {"update": {"target_clip_fraction": 0.5}}
    validated(settings, merged(defaults_of(settings), given))
