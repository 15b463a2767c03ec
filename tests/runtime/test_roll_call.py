"""Whoever is waited for is named, and given up where nothing more is to be hoped for."""

from __future__ import annotations

import pytest

from lmpg.runtime.roll_call import ENDED, PATIENCE, RollCall
from tests.support.planted import catches

SIGN = {"name": "process 7 on host", "meeting": 0, "waiting": False, "busy": False}


def three(timeout=600.0) -> RollCall:
    """Three processes that have met twice by now, which is 0."""
    roll = RollCall(range(3), timeout, 0.0)
    for rank in range(3):
        sign(roll, rank, 0.0, meeting=2)
    return roll


def sign(roll, rank, now, **said):
    roll.hear(rank, {**SIGN, "name": f"process {rank} on host", **said}, now)


def waits(roll, ranks, now, meeting=3):
    for rank in ranks:
        sign(roll, rank, now, meeting=meeting, waiting=True)


@catches("a process that has stopped is waited for in silence")
def test_who_waits_names_who_has_not_come():
    roll = three()
    waits(roll, (0, 2), 0.0)
    assert roll.line(PATIENCE / 2) is None
    said = f"rank 0 has waited {PATIENCE + 1:.0f} s for rank 1 (process 1 on host); "
    assert roll.line(PATIENCE + 1).startswith(said)
    assert roll.line(PATIENCE + 2) is None  # not every second
    assert "for rank 1 (" in roll.line(2 * PATIENCE + 3)
    waits(roll, (1,), 30.0)
    assert roll.line(30.0) == "rank 1 (process 1 on host) has come, training goes on"
    assert roll.line(30.0) is None


def test_what_was_only_slow_is_given_more_time_the_next_time():
    roll = three()
    waits(roll, (0, 2), 0.0)
    assert roll.line(PATIENCE + 1)
    waits(roll, (1,), 12.0)
    assert roll.line(12.0)
    waits(roll, (0, 1, 2), 13.0, meeting=4)
    waits(roll, (0, 1), 14.0, meeting=5)
    assert roll.line(13 + 2 * PATIENCE) is None
    assert roll.line(15 + 2 * PATIENCE)


def test_a_process_that_never_came_is_named_too():
    roll = RollCall(range(2), 600.0, 0.0)
    waits(roll, (1,), 0.0, meeting=1)
    assert "rank 1 has waited 11 s for rank 0 (not started yet)" in roll.line(11.0)


@catches("a process that was killed is waited for", "one that has finished counts as lost")
def test_one_that_ended_without_a_word_is_lost_at_once_and_one_that_finished_is_not():
    roll = three()
    roll.lose(1)
    assert roll.verdict(0.1) == (1, "rank 1 (process 1 on host) has ended")
    roll = three()
    sign(roll, 1, 1.0, meeting=3, why="")
    roll.lose(1)
    waits(roll, (0, 2), 1.0)
    assert roll.verdict(10_000.0)[0] == 0  # who gave no sign since; not the one that has finished
    for now in (2.0, 2.0 + ENDED):
        waits(roll, (0, 2), now)
        assert roll.verdict(now) is None


def test_one_that_ended_with_an_error_of_its_own_tells_the_others_once_they_wait_for_it():
    roll = three()
    sign(roll, 1, 0.0, meeting=2, why="data.path = x.jsonl: no such file")
    roll.lose(1)
    assert roll.verdict(ENDED + 1) is None
    waits(roll, (0, 2), 0.0)
    assert roll.verdict(ENDED - 1) is None
    assert roll.verdict(ENDED + 1)[1].endswith(
        "rank 1 (process 1 on host) has ended: data.path = x.jsonl: no such file"
    )


@catches("a process that gives no sign is waited for")
def test_one_that_gives_no_sign_is_given_up():
    roll = three(timeout=20.0)
    for now in range(1, 30):
        waits(roll, (0, 2), float(now))
        found = roll.verdict(float(now))
        assert (found is not None) == (now > 20)
    assert found[0] == 1
    assert "has given no sign of life for 29 s (run.rank_timeout)" in found[1]


@catches("a process that hangs but gives signs is waited for", "one that works for all is given up")
@pytest.mark.parametrize("busy", [False, True])
def test_one_that_lives_but_does_not_come_is_given_up_unless_it_works_for_all(busy):
    roll = three(timeout=20.0)
    for now in range(30):
        waits(roll, (0, 2), float(now))
        sign(roll, 1, float(now), meeting=2, busy=busy)
    found = roll.verdict(29.0)
    if busy:
        assert found is None
    else:
        assert found == (
            1,
            "rank 1 (process 1 on host) has kept the others waiting for 29 s (run.rank_timeout)",
        )


def test_each_meeting_is_waited_for_anew():
    roll = three(timeout=20.0)
    for now in range(0, 90, 15):
        for rank in (0, 1, 2):
            sign(roll, rank, float(now), meeting=3 + now, waiting=rank != 1)
        assert roll.verdict(float(now)) is None
