"""Metrics go to files bit for bit, are cut back on resume, and read well on a console."""

from __future__ import annotations

import errno
import json
import math
import re

import pytest
import torch

from lmpg.runs.progress_line import clock
from lmpg.runs.tracking import Tracker
from tests.support.planted import catches


@pytest.fixture
def tracker(tmp_path):
    made = []

    def make(total_steps=100, folder=tmp_path, **kwargs):
        made.append(Tracker(folder, total_steps, console_interval=0.0, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@catches("NaN written into JSON", "lines of metrics.jsonl not flushed as they are written")
def test_every_step_is_a_line_of_strict_json_at_once(tmp_path, tracker):
    t = tracker()
    t.log(1, {"reward": 0.1 + 0.2, "grad_norm": torch.tensor(1.5), "kl": math.nan, "r": -math.inf})
    t.log(2, {"reward": 1e-17, "num_tokens": 2**53 + 1})
    first, second = lines(tmp_path / "metrics.jsonl")
    assert first == {"step": 1, "reward": 0.1 + 0.2, "grad_norm": 1.5, "kl": None, "r": None}
    assert second == {"step": 2, "reward": 1e-17, "num_tokens": 2**53 + 1}


def test_samples_keep_texts_messages_and_scores(tmp_path, tracker):
    rows = [
        {"prompt": "Ünë\n", "completion": "\ud800 lone", "score": None},
        {"prompt": [{"role": "user", "content": "hi"}], "completion": "x", "score": 0.5},
    ]
    tracker().samples(3, rows)
    first, second = lines(tmp_path / "samples.jsonl")
    assert first == {"step": 3, "prompt": "Ünë\n", "completion": "? lone", "score": None}
    assert second == {"step": 3, **rows[1]}


def test_what_is_no_number_is_refused(tracker):
    with pytest.raises(TypeError, match="object object"):
        tracker().log(1, {"x": object()})


@catches("metrics not cut back on resume")
def test_files_are_cut_back_to_a_checkpoint_byte_for_byte(tmp_path, tracker):
    t = tracker()
    t.log(1, {"reward": 1.0})
    t.samples(1, [{"prompt": "é"}])
    state = json.loads(json.dumps(t.state()))
    before = [(tmp_path / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl")]
    t.log(2, {"reward": 2.0})
    t.samples(2, [{"prompt": "b"}])
    t.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')  # killed in the middle of a line
    again = tracker()
    again.cut_back(state)
    after = [(tmp_path / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl")]
    assert after == before
    again.log(2, {"reward": 2.5})
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "reward": 1.0},
        {"step": 2, "reward": 2.5},
    ]


def test_a_run_that_starts_over_empties_the_files(tmp_path, tracker):
    t = tracker()
    t.log(1, {"reward": 1.0})
    t.cut_back({})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


@catches("a deleted metrics.jsonl blocks a resume")
@pytest.mark.parametrize("left", [0, 40, 60])
def test_a_file_that_lost_lines_is_told_and_blocks_no_resume(tmp_path, tracker, capsys, left):
    t = tracker()
    for step in (1, 2, 3):
        t.log(step, {"reward": 1.0})
    state, path = t.state(), tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:left])
    t.cut_back(state)
    assert "the run goes on without the lines that are gone" in capsys.readouterr().out
    t.log(4, {"reward": 1.0})
    assert [line["step"] for line in lines(path)] == [*range(1, left // 27 + 1), 4]


@catches("half a line left by a full disk")
def test_a_full_disk_is_remembered_and_not_raised(tmp_path, tracker, monkeypatch):
    t = tracker()
    t.log(1, {"reward": 1.0})
    file = t._files["metrics.jsonl"]

    class Full:
        name = file.name

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        close = file.close

    t._files["metrics.jsonl"] = Full()
    t.log(2, {"reward": 1.0})
    assert t.problem == f"{file.name} cannot be written: No space left on device"
    assert len(lines(tmp_path / "metrics.jsonl")) == 1


def test_only_the_main_process_writes(tmp_path, tracker, capsys):
    t = tracker(main_process=False)
    t.start({"run": {"trackers": ["tensorboard"], "project": "p", "name": None}})
    t.log(1, {"reward": 1.0})
    t.samples(1, [{"prompt": "a"}])
    t.say("hello")
    t.cut_back({"metrics": 5})
    assert t.state() == {}
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_the_console_line_tells_what_matters_and_stays_aligned(tracker, capsys):
    t = tracker()
    metrics = {
        "reward": 1.25, "objective/kl": 0.5, "loss/total": -0.0123,
        "completions/mean_length": 23.4, "perf/tokens_per_second": 1234.5, "time/update": 1.0,
    }  # fmt: skip
    t.log(9, metrics)
    t.log(10, {**metrics, "reward": -11.5, "objective/kl": math.nan, "eval/reward": 2.0})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step   9/100 | reward    1.250 | kl_ref   0.500 | loss   -0.0123 | ")
    assert "length  23.4 | tok/s    1,234 | " in first
    assert re.search(r"\| \d:\d\d elapsed, \d+:\d\d left$", first)
    assert second.startswith("step  10/100 | reward  -11.500 | kl_ref     nan | loss   -0.0123 | ")
    assert "| eval reward 2.000 |" in second
    assert [first.index(" | kl"), first.index(" | tok/s")] == [
        second.index(" | kl"),
        second.index(" | tok/s"),
    ]


@catches("two kinds of KL under one name on the console")
def test_the_console_tells_the_drift_from_the_reference_from_the_size_of_an_update(tracker, capsys):
    t = tracker()
    t.log(1, {"policy/approx_kl": 0.004, "eval/kl": 10.0})
    t.log(2, {"policy/approx_kl": 0.004, "objective/kl": 9.5})
    first, second = capsys.readouterr().out.splitlines()
    assert "| kl_update  0.0040 | eval kl_ref 10.000 |" in first
    assert first.count("kl_ref") == 1
    assert "| kl_ref   9.500 | kl_update  0.0040 |" in second


@catches("the time left counts the steps from before a resume")
def test_the_time_left_counts_the_steps_of_this_session_alone(tracker, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("lmpg.runs.progress_line.time.monotonic", lambda: now[0])
    t = tracker(total_steps=100)
    for step in (51, 52):  # resumed at 50; two seconds a step
        now[0] += 2.0
        t.log(step, {"reward": 0.0})
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("0:04 elapsed, 1:36 left")


def test_quick_steps_share_a_line_but_the_last_step_always_has_one(tmp_path, capsys):
    t = Tracker(tmp_path, 50, console_interval=60.0)
    for step in range(1, 51):
        t.log(step, {"episode/return_mean": float(step)})
    t.close()
    shown = capsys.readouterr().out.splitlines()
    assert [line[:10] for line in shown] == ["step  1/50", "step 50/50"]
    assert len(lines(tmp_path / "metrics.jsonl")) == 50


def test_durations_read_as_clock_times():
    assert [clock(s) for s in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
