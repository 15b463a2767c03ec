"""What does not go together in a language run is refused with the reason."""

from __future__ import annotations

import pytest

from lmpg.algorithms.distillation import Distillation
from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.language.settings import LanguageSettings
from lmpg.settings.raw import merged
from lmpg.settings.section import UserError
from tests.settings.test_config import built

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
