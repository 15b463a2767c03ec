"""What does not go together in a language run is refused with the reason."""

from __future__ import annotations

import pytest

from lmpg.algorithms.distillation import Distillation
from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.language.settings import LanguageSettings
from lmpg.language.stages.settings import DpoSettings, KtoSettings, SftSettings
from lmpg.settings.raw import merged
from lmpg.settings.section import UserError
from tests.settings.test_config import built

NOTHING_COUNTS = {"desirable_weight": 0, "undesirable_weight": 0}
STANDARDISED = {"rewards": {"combine": "standardised"}}


@pytest.mark.parametrize(
    ("algorithm", "sections", "message"),
    [
        (PPO, STANDARDISED, r"combine = standardised with algorithm\.name = ppo, whose groups"),
        (
            GRPO,
            merged(STANDARDISED, {"rewards": {"normalise": "running"}}),
            r"normalise = running with rewards\.combine = standardised",
        ),
        (
            GRPO,
            merged(STANDARDISED, {"algorithm": {"advantage": "relative"}}),
            r"combine = standardised with algorithm\.advantage = relative, .* centred",
        ),
        (
            GRPO,
            {"rewards": {"normalise": "running"}, "algorithm": {"advantage": "relative"}},
            r"normalise = running with algorithm\.advantage = relative",
        ),
        (
            Distillation,
            {"algorithm": {"beta": 0.1}},
            r"beta = 0\.1 has no effect with .*reverse_kl.* algorithm\.divergence to jsd",
        ),
        (
            Distillation,
            {"algorithm": {"divergence": "jsd", "gamma": 1.0}},
            r"gamma = 1\.0 has no effect with .*jsd",
        ),
        (
            GRPO,
            {"model": {"teacher": "T"}},
            r"teacher = T, but .* grpo has no teacher",
        ),
        (
            Distillation,
            {"model": {"reference": "R"}},
            r"reference = R .* whose reference is t",
        ),
        (GRPO, {"model": {"reference": "R"}}, r"reference = R, .* compares with no reference here"),
        (GRPO, {"model": {"reference_refresh": 3}}, r"reference_refresh = 3, .*kl_coef above 0"),
        (PPO, {"model": {"reference": "R", "reference_refresh": 3}}, r"Leave one out"),
        (
            Distillation,
            {"model": {"path": "M"}, "data": {"path": "D"}},
            r"model\.teacher missing",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(algorithm, sections, message):
    with pytest.raises(UserError, match=message):
        built(LanguageSettings[algorithm], **sections)


def test_distillation_from_a_teacher_needs_no_reward():
    own = {"model": {"path": "M", "teacher": "T"}, "data": {"path": "D"}}
    assert built(LanguageSettings[Distillation], **own).rewards.functions == ()
    with pytest.raises(UserError, match=r"rewards\.models missing"):
        built(LanguageSettings[PPO], model={"path": "M"}, data={"path": "D"})


@pytest.mark.parametrize(
    ("settings", "sections", "message"),
    [
        (SftSettings, {"model": {"reference": "R"}}, r"reference = R, but this loss compares with"),
        (DpoSettings, {"model": {"reference": "R"}, "algorithm": {"reference": False}}, "no refer"),
        (KtoSettings, {"model": {"teacher": "T"}}, r"teacher = T, which is for learning from"),
        (DpoSettings, {"model": {"reference_refresh": 1}}, r"reference_refresh = 1, which is for"),
        (KtoSettings, {"algorithm": NOTHING_COUNTS}, r"= 0, so that no answer counts"),
    ],
)
def test_fixed_data_have_a_reference_where_the_loss_compares_with_one(settings, sections, message):
    with pytest.raises(UserError, match=message):
        built(settings, **sections)
    assert built(DpoSettings, model={"reference": "R"}).needs_reference
