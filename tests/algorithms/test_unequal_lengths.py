"""Where responses differ in length, a reduction that divides by it makes another gradient."""

from __future__ import annotations

import pytest

from lmpg.algorithms import ALGORITHMS
from lmpg.gym.classic.exact.unequal_lengths import compared_by_reduction
from tests.support.planted import catches

NUM_EPISODES = 64_000


@pytest.fixture(scope="module")
def measured():
    return compared_by_reduction("first action", NUM_EPISODES)


@catches("sequence_mean as GRPO's default")
def test_by_default_every_step_weighs_the_same_in_all_methods():
    assert {ALGORITHMS[name]().reduction for name in ALGORITHMS} == {"token_mean"}


@catches("token_mean divides by a row's length")
def test_weighing_steps_alike_keeps_the_direction_where_lengths_differ(measured):
    for name in measured.keys() - {"GRPO: sequence_mean", "Dr. GRPO: sequence_mean"}:
        assert measured[name].angle < 5, name


def test_weighing_responses_alike_turns_the_gradient_though_scores_ignore_lengths(measured):
    for name in ("GRPO: sequence_mean", "Dr. GRPO: sequence_mean"):
        assert measured[name].angle > 20, name
