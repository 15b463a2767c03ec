from __future__ import annotations

import math
import re
import time
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rewards.settings import RewardSettings
from lmpg.language.rewards.worker import answer
from lmpg.settings.section import UserError
from tests.support.planted import catches

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


@catches(
    "inf accepted as a score of a reward function",
    "a list of scores of the wrong length accepted",
    "SystemExit in a reward function ends its worker",
    "a failed batch not tried again sample by sample",
)
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
        ("list", "a list of 1 numbers for a completion.*--rewards.process token or step"),
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


@catches("a timed-out worker left running")
def test_a_hanging_sample_is_killed_at_the_timeout_and_the_next_batch_goes_on(scorer):
    faulty = scorer(FAULTS, timeout=1.0)
    began = time.monotonic()
    scores = scored(faulty, ["a", "hangs", "abc"])
    assert time.monotonic() - began < 15
    assert scores.totals == [1.0, None, 3.0]
    assert "rewards.timeout of 1 s" in scores.messages[0]
    assert scored(faulty, ["ab"]).totals == [2.0]


def test_a_failure_with_a_whole_completion_in_its_message_is_shortened(scorer):
    scores = scored(scorer("def reward(completions): raise ValueError(completions)"), ["x" * 9999])
    assert scores.totals == [None]
    assert len(scores.messages[0]) < 400
    assert scores.messages[0].endswith("xxx... (mine.py, line 1)")


def test_all_retries_of_a_batch_share_one_budget(scorer):
    faulty = scorer(FAULTS, timeout=0.8)
    function = next(iter(faulty._rewards.values()))
    function._workers[0].retry_seconds = 1.0
    scores = scored(faulty, ["a"] + ["hangs"] * 10 + ["a"])
    assert scores.totals == [1.0] + [None] * 11
    assert any("retries were used up" in message for message in scores.messages)


def test_a_batch_that_only_works_one_by_one_is_said_once(scorer, caplog):
    one = scorer("def reward(completions):\n    assert len(completions) == 1\n    return [1]\n")
    for _ in range(2):
        assert scored(one, ["a", "b"]).totals == [1.0, 1.0]
    assert len(caplog.records) == 1
    assert "AssertionError" in caplog.text
    assert "one by one" in caplog.text


def test_a_function_gets_only_the_parameters_it_names(scorer):
    code = """
def few(completions, answer): return [float(c == a) for c, a in zip(completions, answer)]
def every(prompts, **rest): return [len(rest) + 10 * len(rest["completion_ids"][0])] * len(prompts)
def default(completions, bonus=3): return [bonus] * len(completions)
"""
    scores = scored(
        scorer(code, "few", "every", "default"), ["a", "b"], answer=["a", "c"], x=[1, 2]
    )
    assert scores.by_reward == {"few": [1.0, 0.0], "every": [14.0, 14.0], "default": [3.0, 3.0]}


def test_async_functions_and_functions_with_neighbours_are_scored(scorer, tmp_path):
    (tmp_path / "neighbour.py").write_text("NUMBER = 7\n")
    code = """
import asyncio
import neighbour
async def reward(completions):
    await asyncio.sleep(0)
    return [neighbour.NUMBER for _ in completions]
"""
    both = scorer(code)
    assert scored(both, ["a"]).totals == [7.0]
    assert scored(both, ["a", "b"]).totals == [7.0, 7.0]


def test_numpy_torch_and_bool_scores_are_numbers(scorer):
    code = """
import numpy as np
def array(completions): return np.ones(len(completions), dtype=np.float32)
def scalars(completions): return [np.int64(2), True]
"""
    scores = scored(scorer(code, "array", "scalars"), ["a", "b"])
    assert scores.totals == [3.0, 2.0]


@catches("only arrays of one dimension are numbers", "a text in an array is read as a number")
@pytest.mark.parametrize("full", [np.full, torch.full], ids=["numpy", "torch"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1)])
def test_an_array_of_one_element_is_a_number(full, shape):
    def answered(value):
        return answer(lambda: value, {}, 2, run=None)

    assert answered([full(shape, 3.5), full(shape, 2)])["scores"] == [3.5, 2.0]
    assert answered(full((2, *shape), 0.5))["scores"] == [0.5, 0.5]
    assert answered(full((2, *shape), math.nan))["scores"] == [None, None]
    assert answered([np.full(shape, "1.0"), 1])["scores"] == [None, 1.0]


def test_an_array_of_several_elements_is_as_many_numbers(scorer):
    code = """
import numpy as np
def flat(completions): return [np.ones(3) for _ in completions]
def column(completions): return [np.ones((3, 1)) for _ in completions]
def square(completions): return [np.ones((3, 3)) for _ in completions]
"""
    three = scorer(code, "flat", "column", process="token")
    scores = three.score(["p"], ["c"], [[7, 8, 9]], {})
    assert scores.totals == [6.0]
    scores = scored(scorer(code, "square", process="token"), ["a"])
    assert scores.totals == [None]
    assert "it returned an array, in a list of numbers" in scores.messages[0]


def test_columns_that_json_does_not_know_arrive_as_lists_and_text(scorer):
    code = """
def reward(when, numbers):
    assert when == ["2026-01-02", None]
    return [sum(n) for n in numbers]
"""
    scores = scored(
        scorer(code), ["a", "b"], when=[date(2026, 1, 2), None], numbers=[np.array([1, 2]), [3]]
    )
    assert scores.totals == [3.0, 3.0]


def test_a_column_that_cannot_be_passed_is_refused_only_if_asked_for(scorer):
    code = "def reward(image): return [1]\ndef other(completions): return [1]\n"
    with pytest.raises(UserError, match=r"asks for the column 'image', which holds object"):
        scored(scorer(code), ["a"], image=[object()])
    assert scored(scorer(code, "other"), ["a"], image=[object()]).totals == [1.0]


def test_chat_prompts_give_the_function_messages_which_is_said_once(scorer, caplog):
    code = """
def reward(prompts, completions):
    assert prompts == [[{"role": "user", "content": "hi"}], "text"]
    assert completions == [[{"role": "assistant", "content": "yo"}], "plain"]
    return [1, 2]
"""
    prompts = [[{"role": "user", "content": "hi"}], "text"]
    made = scorer(code)
    for _ in range(2):
        assert scored(made, ["yo", "plain"], prompts=prompts).totals == [1.0, 2.0]
    assert caplog.text.count('as messages, [{"role": "assistant", "content": "…"}]') == 1


@catches("a total of those rewards that have not failed", "weights of rewards ignored")
def test_the_total_is_the_weighted_sum_and_lacks_where_any_fails(scorer):
    code = """
def one(completions): return [1, 1, "no number"]
def two(completions): return [2, float("nan"), 2]
"""
    scores = scored(scorer(code, "one", "two", weights=(10, 0.5)), ["a", "b", "c"])
    assert scores.totals == [11.0, None, None]
    assert scores.by_reward == {"one": [1.0, 1.0, None], "two": [2.0, None, 2.0]}
    assert scores.errors == 2


def test_rewards_of_one_name_are_told_apart(scorer):
    both = scorer("def reward(completions): return [1]\n", "reward", "reward", "reward")
    assert both.names == ["reward", "mine.reward", "reward_2"]


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("import nothing_of_this_name", "reward", r"ModuleNotFoundError.*\(mine.py, line 1\)"),
        ("def reward(:", "reward", r"SyntaxError: .*mine.py, line 1"),
        ("def rewrad(completions): return []", "reward", "Did you mean rewrad?"),
        ("x = 3", "reward", r"no function or class 'reward'. It has: none"),
        ("reward = 3", "reward", "reward in .*mine.py is a int, expected a function or a class"),
        ("def reward(completions, /): return []", "reward", "'completions' is positional-only"),
        ("import os; os._exit(4)", "reward", "while importing it, its process ended .* code 4"),
    ],
)
def test_a_function_that_does_not_import_is_refused_at_once(scorer, code, name, message):
    with pytest.raises(
        UserError, match=f"rewards.functions: cannot import .*mine.py:{name}: "
    ) as e:
        scorer(code, name)
    assert re.search(message, str(e.value))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("reward", "no built-in reward 'reward'"),
        ("mine.py:", "names no function"),
        ("nowhere/mine.py:reward", "the file nowhere/mine.py of .* doesn't exist"),
        ("some/folder:reward", "neither a file ending in .py nor a module"),
        ("lmpg.no_such_module:reward", "cannot import lmpg.no_such_module:reward: ModuleNot"),
    ],
)
def test_a_spec_that_names_no_function_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        Scorer(RewardSettings(functions=(spec,)))


def test_a_function_of_a_package_is_a_reward_too(tmp_path, monkeypatch):
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "somewhere" / "scores.py").write_text("def reward(completions): return [5]\n")
    monkeypatch.syspath_prepend(tmp_path)
    with Scorer(RewardSettings(functions=("somewhere.scores:reward",))) as one:
        assert scored(one, ["a"]).totals == [5.0]


def test_a_parameter_without_a_column_is_refused_before_training(scorer):
    code = "def reward(completions, anwser): return [1]\n"
    with pytest.raises(UserError, match=r"parameter 'anwser', but .* completion_ids, answer;"):
        scorer(code, columns=["answer"])
    with pytest.raises(UserError, match="parameter 'anwser'"):
        scored(scorer(code), ["a"], answer=[1])


def test_no_reward_at_all_is_refused():
    with pytest.raises(UserError, match=r"no reward is given: use --rewards.functions"):
        Scorer(RewardSettings())
