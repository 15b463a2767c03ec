"""From raw scores to those that are learned from."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lmpg.functional.score_statistics import RunningMoments, overlong_punishment
from lmpg.language.rewards.scorer import Scores
from lmpg.language.rewards.settings import RewardSettings
from lmpg.language.rollouts.assembly import token_rewards
from lmpg.language.rollouts.score_processing import ScoreProcessing
from tests.support.planted import catches

LIMIT = 10


def processed(totals, lengths=None, finished=None, steps=None, **settings):
    """Processed scores of one batch that is the first of its run."""
    processing = ScoreProcessing(RewardSettings(**settings), LIMIT)
    completions, scores = batch(totals, lengths, finished, steps)
    return processing.after(processing.counted(completions, scores)).processed(completions, scores)


def batch(totals, lengths=None, finished=None, steps=None):
    lengths = lengths or [4] * len(totals)
    completions = SimpleNamespace(
        ids=[[5] * n for n in lengths], finished=finished or [True] * len(totals)
    )
    return completions, Scores(totals, {}, totals.count(None), [], steps or [[]] * len(totals))


@catches(
    "running statistics merged without the distance between the means",
    "running statistics with the biased std",
)
def test_moments_are_those_of_all_numbers_however_they_came():
    dice = random.Random(1)
    numbers = [1e6 + dice.gauss(0, 1) for _ in range(300)]
    moments = RunningMoments()
    for start, end in ((0, 1), (1, 1), (1, 40), (40, 300)):
        moments = moments.after(numbers[start:end])
    assert moments.count == 300
    assert moments.mean == pytest.approx(statistics.fmean(numbers), rel=1e-12)
    assert moments.std == pytest.approx(statistics.stdev(numbers), rel=1e-9)
    assert RunningMoments().after([3.0]).std == 0


@catches("over-long slope divided by the limit, not by the margin")
def test_overlong_responses_are_punished_as_in_equation_13():
    # L_max = 10, L_cache = 4: 0 up to 6, then (6 − |y|) / 4, −1 at the limit
    found = [overlong_punishment(length, 10, 4) for length in (1, 6, 7, 8, 9, 10)]
    assert found == [0, 0, -0.25, -0.5, -0.75, -1]
    assert overlong_punishment(10, 10, 0) == 0


def test_without_settings_nothing_changes():
    totals = [1.5, None, -300.0]
    assert processed(totals, [10, 10, 10], [False] * 3).totals == totals
    assert not ScoreProcessing(RewardSettings(), LIMIT).changes_scores
    assert not ScoreProcessing(RewardSettings(truncated="bootstrap"), LIMIT).changes_scores
    assert ScoreProcessing(RewardSettings(truncated="mask"), LIMIT).changes_scores


@catches("scores normalised by this rollout's statistics alone")
def test_the_first_rollout_is_normalised_by_its_own_statistics_and_later_ones_by_all():
    processing = ScoreProcessing(RewardSettings(normalise="running"), LIMIT)
    seen = []
    for totals in ([1.0, None, 2.0, 4.0], [10.0, 0.0]):
        completions, scores = batch(totals)
        seen += [x for x in totals if x is not None]
        processing = processing.after(processing.counted(completions, scores))
        mean, std = statistics.fmean(seen), statistics.stdev(seen)
        expected = [None if x is None else (x - mean) / std for x in totals]
        found = processing.processed(completions, scores).totals
        assert found == [None if x is None else pytest.approx(x) for x in expected]


def test_scores_that_are_all_the_same_are_normalised_to_zero():
    assert processed([2.0, 2.0], normalise="running").totals == [0, 0]


@catches("scores clipped before they are normalised")
def test_scores_are_clipped_after_normalising_and_before_penalties():
    totals = [0.0] * 8 + [90.0]
    found = processed(
        totals,
        finished=[True] * 8 + [False],
        normalise="running",
        score_clip=2.0,
        missing_eos_penalty=0.5,
    ).totals
    assert found[0] == pytest.approx(-10 / 30)  # clipped first, 90 would count as 2
    assert found[-1] == 1.5  # penalised first, it would be 2
    assert processed([5.0, -5.0, 0.1], score_clip=1.0).totals == [1, -1, 0.1]


@catches("penalty for a missing EOS charged to all")
def test_only_responses_without_eos_pay_for_it():
    found = processed([1.0, 1.0, None], finished=[True, False, False], missing_eos_penalty=0.3)
    assert found.totals == [1, 0.7, None]


def test_long_responses_pay_whether_they_ended_or_not():
    found = processed([1.0, 1.0, 1.0], [8, 10, 3], [True, False, True], overlong_tokens=4)
    assert found.totals == [0.5, 0, 1]


def test_what_a_truncated_response_counts_for():
    args = ([1.0, 3.0, None], [4, 10, 10], [True, False, False])
    assert processed(*args, truncated="score").totals == [1, 3, None]
    assert processed(*args, truncated="zero").totals == [1, 0, None]
    assert processed(*args, truncated="mask").totals == [1, None, None]
    assert processed(*args, truncated="bootstrap").totals == [1, 3, None]


def test_the_zero_of_a_truncated_response_is_a_raw_score_and_pays_penalties():
    args = ([1.0, 2.0, 3.0, 9.0], None, [True] * 3 + [False])
    found = processed(*args, truncated="zero", normalise="running", missing_eos_penalty=1.0)
    raw = [1.0, 2.0, 3.0, 0.0]
    lowest = -statistics.fmean(raw) / statistics.stdev(raw)
    assert found.totals[-1] == pytest.approx(lowest - 1)


def test_what_is_masked_out_stays_out_of_the_statistics():
    found = processed(
        [1.0, 3.0, 99.0], finished=[True, True, False], truncated="mask", normalise="running"
    )
    assert found.totals == [pytest.approx(-(0.5**0.5)), pytest.approx(0.5**0.5), None]


def test_the_statistics_come_back_exactly():
    processing = ScoreProcessing(RewardSettings(normalise="running"), LIMIT).after(
        [0.1, 0.7, None, 1e-3]
    )
    again = ScoreProcessing(processing.settings, LIMIT).with_state(processing.state())
    assert again == processing
    assert ScoreProcessing(RewardSettings(), LIMIT).after([1.0]).state() == {}


def last(lengths, width):
    return torch.arange(1, width + 1) == torch.tensor(lengths)[:, None]


@catches("process rewards on their tokens and again in the last one")
def test_process_rewards_lie_on_their_tokens_and_a_row_sums_to_its_total():
    totals_B = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    steps = [[(0, 0.5), (2, 1.0)], [(1, 0.25)], []]
    rewards_BT = token_rewards(last([3, 4, 2], 5), totals_B, steps)
    assert rewards_BT.tolist() == [
        [0.5, 0, 1.5, 0, 0],  # 2 − 0.5 − 1 more on the last token
        [0, 0.25, 0, -1.25, 0],
        [0, 0, 0, 0, 0],
    ]
    assert rewards_BT.dtype == torch.float32


@catches("process rewards not divided by the std of the total")
def test_process_rewards_are_scaled_as_the_total_is():
    steps = [[(0, 0.5)], []]
    found = processed([1.0, 3.0], steps=steps, normalise="running")
    assert found.steps == [[(0, pytest.approx(0.5 / 2**0.5))], []]
    assert found.totals == [pytest.approx(-(0.5**0.5)), pytest.approx(0.5**0.5)]
    zeroed = processed([1.0, 3.0], None, [False, True], steps, truncated="zero")
    assert zeroed.steps == [[], []]


@catches("rewards on tokens divided by a spread of 0")
def test_process_rewards_of_scores_without_spread_are_not_blown_up():
    found = processed([2.0, 2.0], steps=[[(1, 2.0)], [(3, 2.0)]], normalise="running")
    assert found.totals == [0, 0]
    assert found.steps == [[(1, 2.0)], [(3, 2.0)]]


@catches(
    "rewards weighted before they are standardised",
    "a truncated response's rewards standardised before they count 0",
)
def test_each_reward_is_standardised_in_its_group_before_they_are_weighted_and_summed():
    rewards = {
        "exact": [1.0, 0.0, None, 1.0, 2.0, 3.0],
        "short": [100.0, 300.0, 7.0, 5.0, 5.0, 5.0],
    }
    settings = {"combine": "standardised", "functions": ("a", "b"), "weights": (2.0, 1.0)}
    totals = [102.0, 300.0, None, 7.0, 9.0, 11.0]
    completions, scores = batch(totals, finished=[True] * 5 + [False])
    scores = replace(scores, by_reward=rewards)

    def found(**changes):
        processing = ScoreProcessing(RewardSettings(**settings, **changes), LIMIT)
        assert processing.changes_scores
        return processing.processed(completions, scores, group_size=3).totals

    half = 0.5**0.5
    first = [2 * half - half, half - 2 * half, None]
    assert found() == pytest.approx([*first, -2, 0, 2])
    assert found(missing_eos_penalty=0.5) == pytest.approx([*first, -2, 0, 1.5])
    assert found(truncated="mask") == pytest.approx([*first, -2 * half, 2 * half, None])
    zero = [2 * x + y for x, y in zip([0, 1, -1], [1 / 3**0.5, 1 / 3**0.5, -2 / 3**0.5])]
    assert found(truncated="zero") == pytest.approx([*first, *zero])
