"""Questions of reasoning-gym as data, and its own scores as a reward."""

from __future__ import annotations

import importlib.util

import pytest

from lmpg.language.data.prompts import load_prompts
from lmpg.language.data.rows import read_rows
from lmpg.language.data.settings import DataSettings
from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rewards.settings import RewardSettings
from lmpg.language.suitable import own_reward
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny_tokenizers import character_tokenizer

SOURCE = "reasoning_gym:chain_sum(size=10, max_terms=3)"
installed = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed"
)
quiet = pytest.mark.filterwarnings("ignore")  # of the package's own dependencies


@catches("a task of reasoning-gym asks other questions in every run")
@installed
@quiet
def test_a_task_gives_the_same_questions_each_time_and_scores_its_answers():
    rows = read_rows(SOURCE, "train")
    assert len(rows) == 10
    assert rows == read_rows(SOURCE, "train")
    assert rows != read_rows(SOURCE.replace("size", "seed=1, size"), "train")
    right = [row["answer"] for row in rows]
    columns = {"reasoning_gym": [row["reasoning_gym"] for row in rows]}
    with Scorer(RewardSettings(functions=("reasoning_gym",)), columns=rows[0]) as scorer:
        for answers, expected in (
            (right, 1.0),
            ([f"It is <answer>{answer}</answer>!" for answer in right], 1.0),
            (["0.5"] * 10, 0.0),
        ):
            scores = scorer.score([row["prompt"] for row in rows], answers, [[1]] * 10, columns)
            assert scores.totals == [expected] * 10


@installed
@quiet
def test_questions_are_prompts_and_some_are_held_out():
    prompts = load_prompts(DataSettings(path=SOURCE), character_tokenizer(), 500)
    assert (len(prompts.train), len(prompts.held_out)) == (8, 2)
    assert prompts.train[0].prompt == prompts.train[0].columns["question"]


@installed
@quiet
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("chain_sun", r"has no task 'chain_sun'. Did you mean chain_sum\?"),
        ("chain_sum(sizes=3)", "reasoning-gym refuses .*'sizes'"),
        ("chain_sum(3)", "arguments are given by name"),
    ],
)
def test_a_task_that_cannot_be_made_is_refused(source, message):
    with pytest.raises(UserError, match=f"data.path: .*{message}"):
        read_rows(f"reasoning_gym:{source}", "train")


@pytest.mark.skipif(not installed.args[0], reason="reasoning-gym is installed")
def test_without_the_package_the_command_that_installs_it_is_named():
    with pytest.raises(UserError, match=r"data.path: .* pip install 'lmpg\[reasoning\]'"):
        read_rows(SOURCE, "train")


def test_a_task_scores_itself_unless_the_user_names_a_reward():
    given = {"data": {"path": SOURCE}}
    assert own_reward(given) == {"rewards": {"functions": ["reasoning_gym"]}}
    assert own_reward({**given, "rewards": {"models": ["m"]}}) == {}
    assert own_reward({"data": {"path": "gsm.jsonl"}}) == {}
