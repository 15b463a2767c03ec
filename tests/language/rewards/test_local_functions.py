"""Functions that run in the trainer's process, beside the same ones in a worker process."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from code import InteractiveInterpreter
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import pytest

from lmpg.language.rewards import builtin
from lmpg.language.rewards.local_functions import (
    LocalFunction,
    fingerprint,
    importable,
    name_of,
)
from lmpg.language.rewards.results.scores import Scores
from lmpg.language.rewards.scorer import Scorer, started
from lmpg.language.rewards.settings import RewardSettings
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.programs import module_at

CODE = """
import asyncio, sys
from datetime import date

def faults(completions, **kwargs):
    scores = []
    for text in completions:
        if text == "throws": raise ValueError("boom")
        if text == "exits": sys.exit(1)
        odd = {"nan": float("nan"), "none": None, "text": "1.0", "list": [1]}
        scores.append(odd.get(text, float(len(text))))
    return scores

async def later(completions):
    await asyncio.sleep(0)
    return [1.0] * len(completions)

def columns(completions, day, tags):
    assert isinstance(day[0], str) and tags[0] == ["a", "b"], (day, tags)
    tags[0].append("c")
    return [len(x) for x in tags]

def chat(prompts, completions, completion_ids, **kwargs):
    assert completions == [[{"role": "assistant", "content": "yo"}]], completions
    assert prompts == [[{"role": "user", "content": "hi"}]]
    assert sorted(kwargs) == ["answer"], kwargs
    return [1.0]

def trl(completions, answer, trainer_state, log_extra=None, log_metric=None, **kwargs):
    right = [float(c == a) for c, a in zip(completions, answer)]
    log_extra("extracted", [c.upper() for c in completions])
    log_metric("accuracy", sum(right) / len(right))
    return [trainer_state.global_step + x for x in right]

def maths(completions, task, **kwargs):
    return [1.0 if t == "maths" else None for t in task]

def code(completions, task, **kwargs):
    return [2.0 if t == "code" else None for t in task]

def bad_log(completions, log_metric):
    log_metric("x", float("inf"))
    return [1.0] * len(completions)
"""


@pytest.fixture(params=["worker", "trainer"])
def scorer(request, tmp_path: Path):
    """Makes a scorer of functions in CODE, in worker processes or in this one."""
    path, made = tmp_path / "mine.py", []
    path.write_text(CODE)
    module = module_at(path)

    def make(*names: str, **settings) -> Scorer:
        given = {f"memory:{name}": getattr(module, name) for name in names}
        if request.param == "worker":
            given, texts = {}, tuple(f"{path}:{name}" for name in names)
        else:
            texts = tuple(given)
        asked = RewardSettings(functions=texts, **settings)
        made.append(Scorer(asked, functions=started(asked, given, ExitStack())))
        return made[-1]

    yield make
    for one in made:
        one.close()


def scored(scorer: Scorer, *completions: str, prompts: list | None = None, **columns) -> Scores:
    count = len(completions)
    ids = [[7]] * count
    return scorer.score(prompts or ["p"] * count, list(completions), ids, columns)


@catches("an exception in the trainer's process that costs more than its sample")
def test_what_goes_wrong_costs_the_sample_alone(scorer):
    texts = ["throws", "exits", "nan", "none", "text", "list", "good"]
    scores = scored(scorer("faults"), *texts)
    assert scores.totals == [None] * 6 + [4.0]
    said = "\n".join(scores.messages)
    for part in ("ValueError: boom (mine.py, line", "SystemExit: 1", "it returned nan"):
        assert part in said


def test_async_functions_are_waited_for_and_arguments_are_copies_of_plain_values(scorer):
    assert scored(scorer("later"), "a", "b").totals == [1.0, 1.0]
    columns = {"day": [date(2025, 1, 31)], "tags": [["a", "b"]]}
    made = scorer("columns")
    for _ in range(2):
        assert scored(made, "a", **columns).totals == [3.0]
    with pytest.raises(UserError, match="asks for the column 'tags', which holds"):
        scored(made, "a", day=[1], tags=[object()])


def test_chat_completions_are_messages_and_other_columns_keywords(scorer):
    prompts = [[{"role": "user", "content": "hi"}]]
    assert scored(scorer("chat"), "yo", prompts=prompts, answer=["a"]).totals == [1.0]


@catches("what functions log kept of the first part alone")
def test_the_trainers_state_and_logs_are_given_where_they_are_named(scorer):
    made = scorer("trl")
    made.done = 7
    scores = scored(made, "a", "b", answer=["a", "x"])
    assert scores.totals == [8.0, 7.0]
    assert scores.extras == {"extracted": ["A", "B"]}
    assert scores.logged == {"accuracy": [0.5]}
    both = Scores.joined([scores, scores.rows([1])])
    assert both.extras == {"extracted": ["A", "B", "B"]}
    assert scored(scorer("bad_log"), "a").totals == [None]


def test_parts_of_several_workers_keep_their_logs(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    settings = RewardSettings(functions=(f"{tmp_path}/mine.py:trl",), workers=2)
    with Scorer(settings) as made:
        scores = scored(made, "a", "b", "c", answer=["a", "x", "c"])
    assert scores.extras == {"extracted": ["A", "B", "C"]}
    assert scores.logged == {"accuracy": [0.5, 1.0]}


@catches("None counted as a failure beside a reward that has a score", "None counted as 0")
def test_a_reward_that_returns_none_leaves_the_response_to_the_others(scorer, caplog):
    made = scorer("maths", "code", weights=(10.0, 1.0))
    scores = scored(made, "a", "b", "c", task=["maths", "code", "poetry"])
    assert scores.totals == [10.0, 2.0, None]
    assert scores.by_reward == {"maths": [1.0, None, None], "code": [None, 2.0, None]}
    assert scores.messages == [
        f"{name}: 1 of 3 without a score: it returned None" for name in ("maths", "code")
    ]
    assert "reward maths: it returned None (said once)" in caplog.text


def test_the_log_says_once_that_a_hang_cannot_be_cut_short(caplog):
    ones = LocalFunction(lambda completions: [1.0] * len(completions), "memory:one")
    made = Scorer(RewardSettings(functions=("memory:one",)), functions=[ones])
    for _ in range(3):
        scored(made, "a")
    assert caplog.text.count("in the trainer's process, where a hang cannot be cut short") == 1
    assert made.names == ["lambda"]


class Method:
    """Something whose method is a reward."""

    def reward(self, completions):
        """Ones."""
        return [1.0] * len(completions)


def test_functions_that_another_process_finds_are_told_from_those_that_it_does_not():
    assert importable(builtin.numeric_answer) == "numeric_answer"
    assert importable(json.dumps) == "json:dumps"
    for local in (
        lambda completions: [],
        Method().reward,
        Method.reward,
        functools.partial(json.dumps),
        scored.__get__(1),
    ):
        assert importable(local) is None
    assert name_of(functools.partial(functools.partial(json.dumps))) == "dumps"
    assert name_of(Method()) == "Method"


@catches("a module that calls lmpg while it is imported, imported again by the worker")
def test_what_a_program_or_a_module_still_being_imported_defines_is_not_imported_again(tmp_path):
    source = (
        "from lmpg.language.rewards.local_functions import importable\n"
        "def reward(completions): return []\n"
        "print(importable(reward))\n"
    )
    (tmp_path / "imported.py").write_text(source)
    (tmp_path / "program.py").write_text(source + "import imported\nreward = imported.reward\n")
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["None", "None"]


def closure(target: float, seen: list | None = None):
    """A reward that captures a number, a list, and a count that it changes."""
    calls = 0

    def reward(completions):
        nonlocal calls
        calls += 1
        return [target + len(seen or []) for _ in completions]

    return reward


BONUS = 1.0


def bonus(completions):
    """A reward that reads a number of its module, in a comprehension and by name."""
    return [BONUS for _ in completions]


@catches("a notebook's number that a reward reads changed unseen before a resume")
def test_a_fingerprint_knows_the_plain_values_of_the_module(monkeypatch):
    before = fingerprint(bonus)
    monkeypatch.setitem(globals(), "BONUS", 1.0)
    assert fingerprint(bonus) == before
    monkeypatch.setitem(globals(), "BONUS", 2.0)
    assert fingerprint(bonus) != before


def typed(body):
    """A reward as a REPL has it: without a source."""
    interpreter = InteractiveInterpreter()
    interpreter.runsource(f"reward = lambda completions: {body}")
    return interpreter.locals["reward"]


@catches("a closure over another number taken for the same reward on resume")
def test_a_fingerprint_knows_the_source_and_plain_values_that_do_not_change():
    first, same, other = closure(1.0, [1]), closure(1.0, [2]), closure(2.0, [1])
    before = fingerprint(first)
    first([""])
    assert fingerprint(first) == before == fingerprint(same) != fingerprint(other)
    prints = [fingerprint(typed(f"[(lambda: {x})() for _ in completions]")) for x in (1, 2, 1)]
    assert prints[0] == prints[2] != prints[1]
    assert fingerprint(Method().reward) == fingerprint(functools.partial(Method().reward))
