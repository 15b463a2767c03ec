"""Functions in the background, in one process or several."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rewards.settings import RewardSettings
from tests.language.rewards.test_worker_process import all_gone, linux
from tests.support.planted import catches

CODE = """
import asyncio, os, time

def reward(completions):
    return [float(len(text)) for text in completions]

def size(completions):
    return [float(len(completions))] * len(completions)

def pid(completions):
    if "hang" in completions:
        time.sleep(600)
    return [float(os.getpid())] * len(completions)

def slow(completions):
    time.sleep(0.005 * len(completions))
    return [1.0] * len(completions)

async def one(text):
    await asyncio.sleep(0.2)
    return float(text)

async def judged(completions):
    return await asyncio.gather(*map(one, completions), return_exceptions=True)
"""


@pytest.fixture
def scorer(tmp_path: Path):
    made: list[Scorer] = []
    (tmp_path / "mine.py").write_text(CODE)

    def make(name: str, workers: int = 1, timeout: float = 20.0) -> Scorer:
        functions = (f"{tmp_path / 'mine.py'}:{name}",)
        made.append(Scorer(RewardSettings(functions=functions, workers=workers, timeout=timeout)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def submitted(scorer: Scorer, completions: list[str]):
    count = len(completions)
    return scorer.submit(["p"] * count, completions, [[1]] * count, {})


@catches("parts of a batch put together in the order in which they finish")
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_workers_share_a_batch_and_scores_come_back_in_order(scorer, workers):
    many = scorer("reward", workers)
    for count in (7, 1, 0, 5):
        texts = ["x" * n for n in range(count)]
        assert submitted(many, texts).result().totals == list(range(count))


def test_no_worker_gets_more_than_its_share(scorer):
    assert submitted(scorer("size", 3), ["x"] * 7).result().totals == [3, 3, 3, 3, 3, 3, 1]


def test_batches_are_scored_in_the_background_and_each_keeps_its_scores(scorer):
    one = scorer("slow")
    began = time.monotonic()
    pending = [submitted(one, ["x"] * n) for n in (40, 20, 10)]
    assert time.monotonic() - began < 0.15  # of the 0.35 s that they take
    assert [len(x.result().totals) for x in pending] == [40, 20, 10]


def test_async_functions_wait_for_all_samples_at_once_and_fail_one_by_one(scorer):
    judged = scorer("judged")
    began = time.monotonic()
    scores = submitted(judged, ["1", "two", *["3"] * 30]).result()
    assert time.monotonic() - began < 3  # one by one it would take 6.4 s
    assert scores.totals == [1.0, None, *[3.0] * 30]
    assert "1 of 32 without a score: ValueError: could not convert" in scores.messages[0]


@catches("a worker process started by a thread that ends")
@linux
def test_a_hanging_worker_is_replaced_once_and_the_others_go_on(scorer):
    pool = scorer("pid", workers=3, timeout=0.5)
    before = submitted(pool, ["a", "b", "c"]).result().totals
    assert len(set(before)) == 3
    assert submitted(pool, ["a", "hang", "c"]).result().totals == [before[0], None, before[2]]
    after = submitted(pool, ["a", "b", "c"]).result().totals
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] not in before
    # a process that a thread has started dies with that thread
    assert submitted(pool, ["a", "b", "c"]).result().totals == after


@catches("closing waits for a function that hangs")
@linux
def test_closing_does_not_wait_for_what_hangs(scorer):
    pool = scorer("pid", workers=2, timeout=60)
    pids = [int(pid) for pid in submitted(pool, ["a", "b"]).result().totals]
    submitted(pool, ["hang", "b"])
    time.sleep(0.1)
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 5
    assert all_gone(pids)


@linux
def test_a_program_ends_although_a_function_hangs_in_the_background(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    code = (
        "import sys\n"
        "from lmpg.language.rewards.scorer import Scorer\n"
        "from lmpg.language.rewards.settings import RewardSettings\n"
        "scorer = Scorer(RewardSettings(functions=(sys.argv[1] + '/mine.py:pid',), workers=2))\n"
        "print(*map(int, scorer.score(['p', 'p'], ['a', 'b'], [[1]] * 2, {}).totals))\n"
        "scorer.submit(['p', 'p'], ['hang', 'b'], [[1]] * 2, {})\n"
        "raise SystemExit('enough')\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - began < 20
    assert done.stderr == "enough\n"
    assert all_gone([int(pid) for pid in done.stdout.split()])
    assert os.getpid() not in map(int, done.stdout.split())
