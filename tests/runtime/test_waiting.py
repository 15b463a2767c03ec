"""Whoever waits long for another process says for which one."""

from __future__ import annotations

import time

from lmpg.runtime.waiting import PATIENCE, Waiting
from tests.support.planted import catches


class Board(dict):
    """What all processes see, in one of them."""

    def set(self, key, value):
        self[key] = value.encode()

    def get(self, key):
        return self[key]

    def check(self, keys):
        return set(keys) <= self.keys()


def three() -> list[Waiting]:
    """Three processes that have met once, each of which has told so."""
    board = Board()
    found = [Waiting(rank, 3, board) for rank in range(3)]
    for one in found:
        with one.meeting():
            one.tell()
    return found


@catches("a process that has stopped is waited for in silence")
def test_the_first_that_waits_names_those_that_have_not_come():
    first, second, third = three()
    with first.meeting(), third.meeting():
        first.tell(), third.tell()
        now = time.monotonic()
        assert first.look(now + PATIENCE / 2) is None
        line = first.look(now + PATIENCE + 1)
        assert line.startswith(f"rank 0 has waited {PATIENCE + 1:.0f} s for rank 1 (process ")
        assert third.look(now + PATIENCE + 1) is None  # one of them says it
        assert first.look(now + PATIENCE + 2) is None  # and not every second
        assert "for rank 1 (" in first.look(now + 2 * PATIENCE + 3)
        assert second.look(now + PATIENCE + 1) is None  # it works on


def test_another_says_it_where_the_main_process_is_late():
    _, second, third = three()
    with second.meeting(), third.meeting():
        second.tell(), third.tell()
        now = time.monotonic() + PATIENCE + 1
        assert "for rank 0 (" in second.look(now)
        assert third.look(now) is None


def test_what_was_only_slow_is_said_to_have_come_and_is_given_more_time():
    first, second, third = three()
    with first.meeting(), third.meeting():
        first.tell(), third.tell()
        assert first.look(time.monotonic() + PATIENCE + 1)
    assert first.look(time.monotonic()).endswith("has come, training goes on")
    assert first.look(time.monotonic()) is None
    with second.meeting():
        second.tell()
    with first.meeting(), third.meeting():
        first.tell(), third.tell()
        now = time.monotonic()
        assert first.look(now + 2 * PATIENCE - 1) is None
        assert first.look(now + 2 * PATIENCE + 1)


def test_a_process_that_never_came_is_named_too():
    alone = Waiting(1, 2, Board())
    with alone.meeting():
        line = alone.look(time.monotonic() + PATIENCE + 1)
    assert "for rank 0 (not started yet)" in line
