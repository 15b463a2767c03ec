"""Stages show the same held-out examples before, during and after training, with their numbers."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest

from lmpg.algorithms.fixed_data.dpo import DPO
from lmpg.algorithms.fixed_data.kto import KTO
from lmpg.language.data.texts import Text
from lmpg.language.objectives.shown_examples import with_answer_tokens
from tests.support.planted import catches
from tests.support.programs import own_parts, run_here
from tests.support.tiny import tiny_tokenizer

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


@catches("the reference's log-probs of another answer", "log-ratios to the policy as it is now")
def test_an_answers_tokens_say_what_each_of_them_gained_on_the_reference(shown):
    rows = shown("dpo", PAIRS)
    beta = DPO().beta
    for row in rows:
        for side in ("chosen", "rejected"):
            tokens = row["tokens"][side]
            assert "".join(tokens["texts"]) == row[side]
            assert tokens["length"] == len(tokens["log_ratio"])
            for name in ("logprob", "log_ratio"):
                assert sum(tokens[name]) == pytest.approx(tokens["sums"][name], rel=1e-3, abs=2e-3)
            assert beta * sum(tokens["log_ratio"]) == pytest.approx(row[f"score_{side}"], abs=1e-3)
            assert all(x < 0 for x in tokens["logprob"])
            assert any(tokens["log_ratio"]) == (row["step"] > 0)
        assert row["tokens"]["prompt"] == row["prompt"]


def test_a_pair_has_no_tokens_where_they_are_not_asked_for(shown):
    rows = shown("dpo", PAIRS, **{"run.token-view": False, "run.total-steps": 2})
    assert not any("tokens" in row for row in rows)


def test_tokens_that_teach_nothing_have_no_numbers():
    text = Text([3, 4, 5, 6], [False, False, True, False])
    numbers = [-2.0, math.nan], [-3.0, math.nan]
    (row,) = with_answer_tokens(
        [{"prompt": "ab"}], tiny_tokenizer(), [text], *([x] for x in numbers)
    )
    tokens = row["tokens"]
    assert (tokens["prompt"], tokens["texts"]) == ("ab", ["c", "d"])
    assert (tokens["logprob"], tokens["log_ratio"]) == ([-2.0, None], [1.0, None])
    assert tokens["sums"] == {"logprob": -2.0, "log_ratio": 1.0}


def test_labelled_answers_are_shown_with_their_labels(shown):
    rows = shown("kto", PAIRS)
    for row in rows:
        gained = KTO().beta * row["tokens"]["sums"]["log_ratio"]
        assert gained == pytest.approx(row["score"], abs=1e-3)
        assert "".join(row["tokens"]["texts"]) == row["completion"]
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
