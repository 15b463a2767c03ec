"""A process that is lost ends the others, which say so."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from lmpg.runtime import roll_call, watch
from lmpg.runtime.watch import Watch
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.ranks import forked


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0.1)
    monkeypatch.setattr(watch, "SOON", 4.0)  # the process's own threads are slow to see it
    monkeypatch.setattr(roll_call, "ENDED", 0.5)


def started(rank: int, count: int, timeout: float) -> Watch:
    board = dist.distributed_c10d._get_default_store()
    made = Watch(rank, count, board, "localhost")
    made.timeout = timeout
    made.start()
    return made


def ends(watched: Watch, exchange) -> str:
    """What meeting again and again ends with, and after how many seconds."""
    began = time.monotonic()
    try:
        while time.monotonic() < began + 20:
            with watched.meeting():
                exchange()
    except UserError as error:
        return f"{time.monotonic() - began:.0f} s: {error}"
    except SystemExit as end:
        return f"exit {end.code}"
    return "nothing"


def all_reduce() -> None:
    dist.all_reduce(torch.ones(1))
    time.sleep(0.02)


FATES = {
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "has ended, so the run ends here"),
    "stopped": (lambda: os.kill(os.getpid(), signal.SIGSTOP), "has given no sign of life for"),
    "hanging": (lambda: time.sleep(30), "has kept the others waiting for"),
}


@catches("a process that has died is waited for", "the others end without a word")
@pytest.mark.parametrize(
    ("fate", "lost"), [("killed", 0), ("killed", 1), ("stopped", 0), ("hanging", 1)]
)
def test_the_others_end_and_one_of_them_says_why(fate, lost):
    act, said = FATES[fate]

    def member(rank):
        watched = started(rank, 3, 2.0)
        exchange = all_reduce if fate == "killed" else lambda: watched_sleep(watched)
        with watched.busy(False):
            with watched.meeting():
                all_reduce()
            if rank == lost:
                act()
            return ends(watched, exchange)

    found = forked(3, member, 30, lost=lost)
    first = 1 if lost == 0 else 0
    assert f"rank {lost} (process " in found[first]
    assert said in found[first]
    assert found[first].endswith("resume it with --run.resume")
    assert int(found[first].split()[0]) <= 10
    assert found[2] == "exit 1"


def watched_sleep(watched: Watch) -> None:
    """An exchange that never returns, but where torch would be told of the end."""
    while watched.lost is None:
        time.sleep(0.05)
    raise RuntimeError("Connection closed by peer")


def ended_by(monkeypatch) -> list[int]:
    """What the watch of this process would end it with, again and again from now on: were that
    undone, the next time would end a process that has not answered yet."""
    codes: list[int] = []
    monkeypatch.setattr(watch, "os", SimpleNamespace(_exit=codes.append))
    return codes


@catches("one that is silent is waited for as long as one of whose end torch tells")
def test_one_that_is_silent_is_not_waited_for_beyond_its_time(monkeypatch):
    monkeypatch.setattr(watch, "SOON", 0.1)
    monkeypatch.setattr(watch, "GRACE", 1000.0)

    def member(rank):
        watched = started(rank, 2, 60.0)
        with watched.meeting():
            all_reduce()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        codes = ended_by(monkeypatch)
        with watched.meeting():
            watched.timeout = 0.5
            while not codes:
                time.sleep(0.02)
        return codes[0]

    assert forked(2, member, 30, lost=1)[0] == 1


@catches("what waits in torch for ever is never ended")
def test_one_that_waits_where_nothing_tells_it_is_ended_too(monkeypatch):
    monkeypatch.setattr(watch, "GRACE", 0.5)

    def member(rank):
        watched = started(rank, 2, 60.0)
        if rank == 1:
            watched.finish("no such file")
            return None
        codes = ended_by(monkeypatch)
        with watched.meeting():
            while not codes:
                time.sleep(0.05)
        return codes[0]

    assert forked(2, member, lost=1)[0] == 1


def test_those_that_end_in_order_end_nobody():
    def member(rank):
        watched = started(rank, 3, 2.0)
        with watched.meeting():
            all_reduce()
        time.sleep([0.0, 2.6, 0.8][rank])
        watched.finish()
        return watched.lost

    assert forked(3, member) == [None, None, None]


def test_a_child_does_not_hold_the_connection_of_its_parent():
    def member(rank):
        watched = started(rank, 2, 60.0)
        if rank == 1:
            if os.fork() == 0:
                time.sleep(8)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        return ends(watched, lambda: time.sleep(0.05))

    found = forked(2, member, 30, lost=1)[0]
    assert "has ended" in found
    assert int(found.split()[0]) < 8


def test_an_unhandled_error_is_told_to_the_others(monkeypatch):
    def member(rank):
        watched = started(rank, 2, 60.0)
        if rank == 1:
            monkeypatch.setattr(sys, "last_value", ZeroDivisionError("by 0"), raising=False)
            watched.finish()
            return None
        return ends(watched, lambda: watched_sleep(watched))

    assert "has ended: ZeroDivisionError('by 0'), so the run ends here" in forked(2, member)[0]
