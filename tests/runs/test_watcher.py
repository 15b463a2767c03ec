"""A run says once what goes wrong while it goes on, and keeps its report up to date cheaply."""

from __future__ import annotations

import json
import re

import pytest

from lmpg.runs import watcher as module
from lmpg.runs.alarms import WINDOW
from lmpg.runs.report.write import write_report
from lmpg.runs.watcher import Watcher
from tests.support.planted import catches
from tests.support.programs import own_parts, run_here

GOOD = {
    "reward": 1.0, "reward_std": 0.5, "completions/clipped_ratio": 0.2, "policy/entropy": 1.0,
    "completions/mean_length": 20.0, "objective/kl": 2.0, "policy/approx_kl": 0.01,
}  # fmt: skip
SICK = {
    "cut off": ({"completions/clipped_ratio": 1.0}, "all responses .* cut off at sampling.max_new"),
    "constant reward": ({"reward_std": 0.0}, "every response of the last 10 steps has the score 1"),
    "kl": ({"objective/kl": 30.0}, "30 nats per response of 20 tokens"),
    "update": ({"policy/approx_kl": 1.5}, r"moves the policy by 1.5 nats per step"),
    "entropy": ({"policy/entropy": 0.01}, "entropy has fallen from 1 to 0.01"),
}


def said(rows, asked=None):
    """What a run with these metrics would say, with its step."""
    watching, found = Watcher(0, asked or {}, {}), []
    for step, row in enumerate(rows, 1):
        found += [(step, text) for text in watching.alarms(step, row)]
    return found


@catches("what a resumed run began with is forgotten")
def test_a_resumed_run_compares_with_the_steps_that_it_began_with():
    bad = {**GOOD, "policy/entropy": 0.01}
    before = [{"step": i + 1, **GOOD} for i in range(20)] + [{"step": 21, **bad}] * 5
    watching, found = Watcher(0, {}, {}, before), []
    for step in range(26, 40):
        found += watching.alarms(step, bad)
    assert [text[:7] for text in found] == ["step 30"]


@catches("an alarm said at each step", "an alarm for a single step")
@pytest.mark.parametrize("kind", SICK)
def test_what_goes_wrong_is_said_once_after_a_while(kind):
    change, text = SICK[kind]
    bad = [{**GOOD, **change}]
    assert said(bad * (WINDOW - 1)) == said([*[GOOD] * 20, *bad * (WINDOW - 1), GOOD]) == []
    found = said([GOOD] * 20 + bad * 30)
    assert len(found) == 1
    assert found[0][0] == 20 + WINDOW
    assert re.search(text, found[0][1])
    assert found[0][1].startswith(f"step {found[0][0]}: ")


def test_a_good_run_says_nothing():
    better = [
        {**GOOD, "reward": i / 10, "policy/entropy": 2 / (i + 1), "objective/kl": 0.1 * i}
        for i in range(100)
    ]
    assert said(better) == []
    solved = {"reward_std": 0.0, "policy/entropy": 0.001}
    assert said([*better, *([{**GOOD, **solved, "reward": 10.0 + i} for i in range(20)])]) == []
    agent = [{"episode/return_mean": float(i), "policy/entropy": 0.6 / (1 + i)} for i in range(99)]
    assert said(agent) == []
    assert said([{"loss": 1.0, "grad_norm": None}] * 20) == []


def test_a_kl_that_was_asked_for_is_compared_with():
    assert said([{**GOOD, "objective/kl": 12.0}] * 20) == []
    ((_, text),) = said([{**GOOD, "objective/kl": 12.0}] * 20, {"kl_target": 2.0})
    assert "6 times algorithm.kl_target = 2" in text
    ((_, text),) = said([{**GOOD, "policy/approx_kl": 0.2}] * 20, {"target_kl": 0.02})
    assert "update.target_kl is 0.02" in text
    evaluated = {**GOOD, "objective/kl": None, "eval/kl": 40.0, "eval/length": 20.0}
    ((_, text),) = said([evaluated] * 20)
    assert "40 nats per response of 20 tokens" in text


def test_what_an_earlier_process_said_is_not_said_again():
    known: dict[str, str] = {}
    first = Watcher(0, {}, known)
    bad = {**GOOD, **SICK["cut off"][0]}
    assert [x for step in range(20) for x in first.alarms(step, bad)]
    assert not [x for step in range(20) for x in Watcher(0, {}, known).alarms(step, bad)]


@catches("the report written at each step, whatever it costs")
def test_writing_takes_half_a_percent_of_the_time(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def write(folder, summary, history):
        written.append(now[0])
        now[0] += 1.5

    monkeypatch.setattr(module, "write_report", write)
    watching = Watcher(2, {}, {})
    for step in range(1, 2001):
        now[0] += 1.0
        watching.write(step, tmp_path, dict)
    assert len(written) * 1.5 <= 0.0055 * now[0]
    assert len(written) > 0.004 * now[0] / 1.5
    assert written[0] == pytest.approx(20.0)


def test_a_report_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, caplog):
    def broken(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "write_report", broken)
    watching = Watcher(1, {}, {})
    watching._cost = 0.0
    assert watching.write(1, tmp_path, dict) >= 0
    assert watching.write(2, tmp_path, dict) == 0.0
    assert [record.message for record in caplog.records] == [
        "report.html could not be written, and waits for the end: "
        "OSError('No space left on device')"
    ]


def test_the_report_of_a_run_is_there_while_it_goes_on_and_tells_what_is_wrong(
    tmp_path, monkeypatch, capsys
):
    pages = []

    def write(folder, summary, history):
        pages.append(write_report(folder, summary, history).read_text())

    monkeypatch.setattr(module, "write_report", write)
    monkeypatch.setattr(module, "GUESS", 0.0)
    monkeypatch.setattr(module, "SHARE", 1e9)
    flags = own_parts(tmp_path / "parts") | {"run.output-dir": tmp_path / "run"}
    flags |= {"sampling.max-new-tokens": 2, "run.total-steps": 14, "run.report-every": 4}
    reward = "def letters(completions):\n    return [1.0] * len(completions)\n"
    (tmp_path / "parts" / "reward.py").write_text(reward)
    folder = run_here("ppo", flags)
    assert len(pages) == 3
    assert all("still running" in page for page in pages)
    assert "8 of 14 iterations" in pages[1]
    warning = "every response of the last 10 steps has the score 1: nothing can be learned"
    assert [warning in page for page in pages] == [False, False, True]
    assert warning in (folder / "report.html").read_text()
    assert capsys.readouterr().out.count(warning) == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["warnings"]) == 1
    assert summary["seconds"]["time/report"] > 0
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert [row["step"] for row in logged if "time/report" in row] == [5, 9, 13]
