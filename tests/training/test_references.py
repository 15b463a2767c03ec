"""A copy of the first policy is kept only where somebody asks for the KL to it."""

from __future__ import annotations

import pytest

from lmpg.algorithms.ppo import PPO
from lmpg.language.program import references
from lmpg.language.settings import LanguageSettings
from lmpg.runs.settings import LanguageEvaluationSettings


class Copying:
    """A policy that counts its copies."""

    copies = 0

    def __init__(self, cheap=False):
        self.reference_is_cheap = cheap

    def reference(self, refreshed):
        self.copies += 1
        return "reference"


@pytest.mark.parametrize(
    ("kl_coef", "kl", "expected", "copies"),
    [
        (0.1, True, ("reference", "reference"), 1),
        (0.1, False, ("reference", None), 1),
        (0.0, True, (None, "reference"), 1),
        (0.0, False, (None, None), 0),
        (0.1, None, ("reference", "reference"), 1),
        (0.0, None, (None, None), 0),
    ],
)
def test_a_reference_is_made_once_and_only_for_those_who_ask(kl_coef, kl, expected, copies):
    evaluation = LanguageEvaluationSettings(kl=kl)
    settings = LanguageSettings[PPO](algorithm=PPO(kl_coef=kl_coef), evaluation=evaluation)
    policy = Copying()
    assert references(settings, policy) == expected
    assert policy.copies == copies


def test_without_being_asked_a_kl_is_measured_where_its_reference_takes_little_memory():
    settings = LanguageSettings[PPO](algorithm=PPO(kl_coef=0))
    assert references(settings, Copying(cheap=True)) == (None, "reference")
    assert references(settings, Copying(), own="own") == (None, "own")
