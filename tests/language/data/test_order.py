from __future__ import annotations

from collections import Counter

import pytest

from lmpg.language.data.order import epoch_order, held_out_split, prompts_for_step, subset
from tests.support.planted import catches


def test_every_epoch_uses_every_prompt_once_in_an_order_of_its_own():
    first, second = epoch_order(50, 0, seed=1), epoch_order(50, 1, seed=1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert list(first) != list(second)
    assert list(first) != list(epoch_order(50, 0, seed=2))


@catches("prompts drawn by step, not by epoch")
@pytest.mark.parametrize("per_step", [3, 7, 10, 25])
def test_steps_walk_through_the_epochs_without_gap_or_overlap(per_step):
    walked = [i for step in range(20) for i in prompts_for_step(10, step, per_step, seed=5)]
    expected = [int(i) for epoch in range(60) for i in epoch_order(10, epoch, seed=5)]
    assert walked == expected[: len(walked)]
    assert max(Counter(walked).values()) - min(Counter(walked).values()) <= 1


def test_a_step_is_the_same_whatever_was_asked_before():
    expected = prompts_for_step(100, 33, 8, seed=3)
    for step in (90, 0, 1):
        prompts_for_step(100, step, 8, seed=4)
    assert prompts_for_step(100, 33, 8, seed=3) == expected


def test_orders_are_the_same_on_every_machine():
    assert prompts_for_step(10, 0, 4, seed=0) == [5, 1, 2, 8]


@catches("held-out rows in training")
def test_held_out_rows_are_at_most_a_fifth_and_disjoint_from_training():
    train, held_out = held_out_split(100, num_eval=256)
    assert len(held_out) == 20
    assert sorted(train + held_out) == list(range(100))
    assert len(held_out_split(1000, num_eval=7)[1]) == 7


def test_a_subset_keeps_file_order_and_is_always_the_same():
    assert subset(5, 10) == [0, 1, 2, 3, 4]
    assert subset(100, 10) == subset(100, 10) == sorted(set(subset(100, 10)))
