"""What takes long before the first step says how far it is."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest

from lmpg.language.models import pretrained
from lmpg.runtime import progress
from tests.support.hub import cached_on_the_hub
from tests.support.planted import catches
from tests.support.programs import own_parts, run_here
from tests.support.tiny import save_tiny


@pytest.fixture
def every_line(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)


@catches("time left of what is done already")
def test_the_time_left_is_that_of_what_is_not_done(monkeypatch, every_line, capsys):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.with_progress("abcd", "letters read", 4)) == [*"abcd"]
    assert capsys.readouterr().out.splitlines() == [
        "1 of 4 letters read, 1:00 left",
        "2 of 4 letters read, 0:30 left",
        "3 of 4 letters read, 0:13 left",
    ]
    assert progress.clock(3725) == "1:02:05"


def test_every_stage_before_the_first_step_is_told(tmp_path, every_line, capsys):
    parts = own_parts(tmp_path)
    run_here("grpo", {**parts, "run.total-steps": 1, "run.output-dir": tmp_path / "grpo"})
    said = capsys.readouterr().out
    assert re.search(r"^\d+ of \d+ rows of .* tokenised, \d:\d\d left$", said, re.M)
    assert re.search(r"^\d+ rows of prompts.jsonl read$", said, re.M)
    pairs = [{"prompt": "ab ", "chosen": "c" * (i % 4 + 1), "rejected": "d"} for i in range(24)]
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    own = {"model.path": parts["model.path"], "data.path": rows, "run.total-steps": 1}
    own |= {"update.minibatch-size": 4, "update.microbatch-size": 4}
    run_here("dpo", {**own, "run.output-dir": tmp_path / "dpo"})
    said = capsys.readouterr().out
    assert re.search(r"^\d+ of 24 rows of .* tokenised, \d:\d\d left$", said, re.M)
    assert re.search(r"^\d+ of \d+ batches: log-probs of the reference, \d:\d\d left$", said, re.M)


@catches("a model of many gigabytes that loads in silence")
def test_the_loading_of_a_large_or_a_new_model_has_a_bar(tmp_path, monkeypatch):
    save_tiny(tmp_path / "model")
    folder = str(tmp_path / "model")
    assert not pretrained._takes_long(folder, None)
    monkeypatch.setattr(pretrained, "LARGE", 1000)
    assert pretrained._takes_long(folder, None)
    fill = {"main": partial(save_tiny, seed=1)}
    cached_on_the_hub(tmp_path / "cache", "me/tiny", fill, monkeypatch)
    monkeypatch.setattr(pretrained, "LARGE", 10**9)
    assert not pretrained._takes_long("me/tiny", None)
    assert pretrained._takes_long("me/other", None)
    monkeypatch.setenv("RANK", "1")
    assert not pretrained._takes_long("me/other", None)
