"""Stages show the same held-out examples before, during and after training, with their numbers."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.support.planted import catches
from tests.support.programs import own_parts, run_here

FLAGS = {"run.total-steps": 4, "evaluation.every": 2, "update.minibatch-size": 4}
PAIRS = [{"chosen": f"a{i}: good", "rejected": f"a{i}: {'b' * (1 + i % 3)}"} for i in range(30)]
TEXTS = [{"text": f"film {i}", "label": i % 2} for i in range(30)]


@pytest.fixture
def shown(tmp_path):
    """Rows of samples.jsonl of a stage that learns from the given data."""

    def made(stage, data, **more):
        model = own_parts(tmp_path / "parts")["model.path"]
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in data))
        flags = {"model.path": model, "data.path": path, "run.output-dir": tmp_path / "run"}
        folder = run_here(stage, {**FLAGS, **flags, "update.learning-rate": 1e-3, **more})
        return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]

    return made


@catches("the last step's examples shown twice", "the rewards of chosen and rejected swapped")
def test_pairs_are_shown_with_their_rewards_before_during_and_after(shown):
    rows = shown("dpo", PAIRS)
    assert Counter(row["step"] for row in rows) == {0: 4, 2: 4, 4: 4}
    first, last = rows[:4], rows[-4:]
    for row, later in zip(first, last):
        assert (row["prompt"], row["chosen"]) == (later["prompt"], later["chosen"])
        assert row["chosen"].startswith(" good")
        assert row["chosen"].endswith("<eos>")
        assert (row["score_chosen"], row["score_rejected"], row["margin"]) == (0, 0, 0)
        assert later["margin"] > 0
        apart = later["score_chosen"] - later["score_rejected"]
        assert later["margin"] == pytest.approx(apart, abs=1e-3)


def test_labelled_answers_are_shown_with_their_labels(shown):
    rows = shown("kto", PAIRS)
    assert {row["label"] for row in rows} <= {"desirable", "undesirable"}
    assert all(row["score"] == 0 for row in rows if row["step"] == 0)
    assert any(row["score"] != 0 for row in rows if row["step"] == 4)


def test_a_reward_models_pairs_and_texts_are_shown_with_their_scores(shown):
    rows = shown("reward_model", PAIRS)
    assert Counter(row["step"] for row in rows) == {0: 4, 2: 4, 4: 4}
    assert all(row["prompt"] + row["chosen"] != row["prompt"] + row["rejected"] for row in rows)
    assert all(row["prompt"].startswith("a") for row in rows)
    assert sum(x["margin"] for x in rows[-4:]) > sum(x["margin"] for x in rows[:4])


def test_a_reward_models_labelled_texts_are_shown_too(shown):
    rows = shown("reward_model", TEXTS, **{"run.total-steps": 2})
    assert {row["label"] for row in rows} == {"label 0", "label 1"}
    assert all(row["completion"].startswith("film") for row in rows)
    assert all(isinstance(row["score"], float) for row in rows)
