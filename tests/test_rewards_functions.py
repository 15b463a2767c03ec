from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from lmpg.rewards.scorer import Scorer
from lmpg.rewards.settings import RewardSettings

FAULTS = """
import os, time, ctypes

def reward(completions):
    print("a print that must not break the protocol")
    scores = []
    for text in completions:
        if text == "throws": raise ValueError("boom")
        if text == "exits": raise SystemExit(1)
        if text == "hangs": time.sleep(60)
        if text == "dies": os._exit(3)
        if text == "segfaults": ctypes.string_at(0)
        odd = {"nan": float("nan"), "inf": float("inf"), "none": None, "text": "1.0", "list": [1]}
        scores.append(odd.get(text, float(len(text))))
    if "short" in completions: scores = scores[:-1]
    if "none at all" in completions: return None
    return scores
"""


@pytest.fixture
def scorer(tmp_path: Path):
    made: list[Scorer] = []

    def make(code: str, *names: str, timeout: float = 20.0, **settings) -> Scorer:
        (tmp_path / "mine.py").write_text(code)
        functions = tuple(f"{tmp_path / 'mine.py'}:{name}" for name in names or ("reward",))
        columns = settings.pop("columns", None)
        options = RewardSettings(functions=functions, timeout=timeout, **settings)
        made.append(Scorer(options, columns=columns))
        return made[-1]

    yield make
    for one in made:
        one.close()


def scored(scorer: Scorer, completions: list[str], **columns: list):
    count = len(completions)
    prompts = columns.pop("prompts", ["p"] * count)
    return scorer.score(prompts, completions, [[7]] * count, columns)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("throws", r"ValueError: boom \(mine.py, line 8\)"),
        ("exits", "SystemExit"),
        ("dies", "exit code 3"),
        ("segfaults", "SIGSEGV"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("none", "None"),
        ("text", "str among"),
        ("list", "list among"),
        ("short", "0 scores for 1"),
        ("none at all", "NoneType, expected a list"),
    ],
)
def test_one_failing_sample_has_no_score_and_the_others_keep_theirs(scorer, fault, message):
    scores = scored(scorer(FAULTS), ["a", fault, "abc"])
    assert scores.totals == [1.0, None, 3.0]
    assert scores.errors == 1
    assert len(scores.messages) == 1
    assert scores.messages[0].startswith("reward: 1 of 3 without a score: ")
    assert re.search(message, scores.messages[0])


def test_a_hanging_sample_is_killed_at_the_timeout_and_the_next_batch_goes_on(scorer):
    faulty = scorer(FAULTS, timeout=0.7)
    began = time.monotonic()
    scores = scored(faulty, ["a", "hangs", "abc"])
    assert time.monotonic() - began < 6
    assert scores.totals == [1.0, None, 3.0]
    assert "rewards.timeout of 0.7 s" in scores.messages[0]
    assert scored(faulty, ["ab"]).totals == [2.0]
