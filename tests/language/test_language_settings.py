"""What does not go together in a language run is refused with the reason."""

from __future__ import annotations

import pytest

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
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(algorithm, sections, message):
    with pytest.raises(UserError, match=message):
        built(LanguageSettings[algorithm], **sections)
