"""Data as GSM8K has it trains by flags alone, through the scripts; so does a reasoning-gym task."""

from __future__ import annotations

import json

import pytest

from lmpg.settings.section import UserError
from tests.support.programs import SMALL, launched, metrics, run_here, words
from tests.support.tiny import save_tiny

QUESTIONS = [
    {
        "question": f"Ann has {i} figs and buys {i % 5} more. How many?",
        "answer": f"{i} + {i % 5} = <<{i}+{i % 5}={i + i % 5}>>\n#### {i + i % 5}",
    }
    for i in range(30)
]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gsm")
    save_tiny(folder / "model", max_position_embeddings=512)
    text = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    (folder / "gsm.jsonl").write_text(text)
    return {
        **SMALL,
        "model.path": folder / "model",
        "data.path": folder / "gsm.jsonl",
        "data.prompt-column": "question",
        "rewards.functions": "numeric_answer",
        "run.total-steps": 2,
    }


@pytest.mark.slow
def test_questions_with_answers_behind_hashes_train_without_any_code(flags, tmp_path):
    flags = {**flags, "run.output-dir": tmp_path / "run", "algorithm.group-size": 4}
    done = launched("scripts/train_grpo.py", *words(flags))
    assert done.returncode == 0, done.stderr
    lines = metrics(tmp_path / "run")
    assert len(lines) == 2
    assert [line["reward_errors"] for line in lines] == [0, 0]
    assert all(0 <= line["rewards/numeric_answer/mean"] <= 1 for line in lines)


@pytest.mark.slow
def test_another_name_for_the_answer_is_mapped_and_a_wrong_one_is_refused(flags, tmp_path):
    renamed = [{"question": row["question"], "solution": row["answer"]} for row in QUESTIONS]
    text = "".join(json.dumps(row) + "\n" for row in renamed)
    (tmp_path / "renamed.jsonl").write_text(text)
    flags = {**flags, "data.path": tmp_path / "renamed.jsonl", "run.output-dir": tmp_path / "run"}
    refused = [
        ({}, "'answer', but the data has only: question, solution. Name the one that holds"),
        ({"data.answer-column": "solutoin"}, "Use --data.answer-column solution"),
        ({"data.prompt-column": "qestion"}, "Use --data.prompt-column question"),
    ]
    for changes, message in refused:
        with pytest.raises(UserError, match=message):
            run_here("reinforce", {**flags, **changes})
        assert not (tmp_path / "run").exists()
    folder = run_here("reinforce", {**flags, "data.answer-column": "solution"})
    assert metrics(folder)[0]["reward_errors"] == 0


@pytest.mark.slow
def test_a_task_of_reasoning_gym_trains_with_its_own_score(flags, tmp_path):
    pytest.importorskip("reasoning_gym")
    flags = {k: v for k, v in flags.items() if k not in ("data.prompt-column", "rewards.functions")}
    flags["data.path"] = "reasoning_gym:chain_sum(size=20, max_terms=3)"
    folder = run_here("ppo", {**flags, "run.output-dir": tmp_path / "run"})
    assert metrics(folder)[0]["rewards/reasoning_gym/mean"] >= 0
