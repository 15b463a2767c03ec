"""Rewards that fail cost their samples, never the run; too many of them stop it, saved."""

from __future__ import annotations

import json

import pytest

from lmpg.cli.main import main
from lmpg.runs.tracking import Tracker
from tests.support.planted import catches
from tests.support.programs import metrics, outcome, own_parts, run_here

FAULTY = """
import math, pathlib, time

def letters(completions, number):
    scores = [completion.count("a") - len(completion) / 20 for completion in completions]
    for i, n in enumerate(number):
        if n % 4 == 1:
            {fault}
    return scores
"""
FAULTS = {
    "raises": "raise RuntimeError('it broke')",
    "nan": "scores[i] = math.nan",
    "inf": "scores[i] = -math.inf",
    "none": "scores[i] = None",
    "text": "scores[i] = 'good'",
    "too few": "return scores[:-1]",
    "too many": "return [*scores, 1.0]",
    "exits": "import os; os._exit(3)",
    "hangs": "time.sleep(60)",
}
BROKEN = """
import pathlib

def letters(completions, number):
    if pathlib.Path(__file__).with_name("broken").exists():
        raise RuntimeError("it broke")
    return [completion.count("a") - len(completion) / 20 for completion in completions]
"""


@pytest.fixture
def flags(tmp_path):
    shown = {"update.rollout-size": 4, "update.minibatch-size": 2}  # as many as are shown
    return {**own_parts(tmp_path / "parts"), **shown, "run.output-dir": tmp_path / "run"}


@pytest.mark.parametrize(
    "fault",
    [*list(FAULTS)[:-2], *(pytest.param(x, marks=pytest.mark.slow) for x in list(FAULTS)[-2:])],
)
def test_a_sample_without_a_score_is_left_out_and_counted(fault, flags, tmp_path):
    (tmp_path / "parts" / "reward.py").write_text(FAULTY.format(fault=FAULTS[fault]))
    rows = [json.dumps({"prompt": str(i), "number": i}) for i in range(40)]
    (tmp_path / "parts" / "prompts.jsonl").write_text("\n".join(rows))
    settings = {"rewards.timeout": 0.5, "rewards.max-error-share": 1, "algorithm.group-size": 2}
    folder = run_here("grpo", {**flags, **settings, "run.total-steps": 2, "evaluation.size": 1})
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 8
    for sample in samples:
        assert (sample["score"] is None) == (int(sample["prompt"]) % 4 == 1)
    missing = [sum(s["score"] is None for s in samples if s["step"] == step) for step in (1, 2)]
    assert sum(missing) > 0
    assert [line["reward_errors"] for line in metrics(folder)] == missing


@catches("run goes on whatever the share of failing rewards")
def test_a_run_with_too_many_failures_stops_saved_and_goes_on_when_the_reward_is_mended(
    flags, tmp_path, monkeypatch, capsys
):
    (tmp_path / "parts" / "reward.py").write_text(BROKEN)
    whole = outcome(run_here("ppo", {**flags, "run.output-dir": tmp_path / "whole"}))
    broken, log = tmp_path / "parts" / "broken", Tracker.log

    def breaking(self, step, numbers):
        log(self, step, numbers)
        broken.touch()

    monkeypatch.setattr(Tracker, "log", breaking)
    with pytest.raises(SystemExit) as ending:
        main(lambda: run_here("ppo", flags))
    monkeypatch.undo()
    assert ending.value.code == 2
    said = capsys.readouterr().err
    assert "4 of 4" in said
    assert "rewards.max_error_share" in said
    assert "RuntimeError: it broke" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["exit_reason"].startswith("stopped")
    broken.unlink()
    assert outcome(run_here("ppo", {**flags, "run.resume": True})) == whole


@pytest.mark.slow
def test_a_reward_that_is_broken_from_the_start_stops_the_first_step_and_leaves_nothing(
    flags, tmp_path, capsys
):
    (tmp_path / "parts" / "reward.py").write_text(BROKEN)
    (tmp_path / "parts" / "broken").touch()
    with pytest.raises(SystemExit):
        main(lambda: run_here("ppo", flags))
    assert "it broke" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    (tmp_path / "parts" / "broken").unlink()
    whole = outcome(run_here("ppo", {**flags, "run.output-dir": tmp_path / "whole"}))
    mended = outcome(run_here("ppo", flags))
    assert mended["metrics"] == whole["metrics"]
