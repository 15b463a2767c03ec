"""What a run tells of its time: seconds per phase, step by step and in all."""

from __future__ import annotations

import json

import pytest

from tests.support.planted import catches
from tests.support.programs import own_parts, run_here

PHASES = {"time/sample", "time/score", "time/reference", "time/update"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("phases")
    flags = {"run.output-dir": place / "run", "run.total-steps": 4, "run.save-every": 2}
    return run_here("ppo", {**own_parts(place), **flags})


def test_every_step_tells_its_phases_speed_and_memory(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for before, line in zip([{"num_tokens": 0}, *lines], lines):
        assert line.keys() >= PHASES
        tokens = line["num_tokens"] - before["num_tokens"]
        seconds = tokens / line["perf/tokens_per_second"]
        assert 0 < sum(line[phase] for phase in PHASES) <= seconds
        assert 0.01 < line["perf/peak_memory_gb"] < 100


@catches("the seconds of a checkpoint reported again and again, or left out of the summary")
def test_what_a_checkpoint_took_is_told_once_with_the_next_step_and_counted_in_the_summary(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = {line["step"]: line["time/checkpoint"] for line in lines if "time/checkpoint" in line}
    assert list(told) == [3]
    seconds = json.loads((folder / "summary.json").read_text())["seconds"]
    assert seconds["time/checkpoint"] > told[3] > 0  # there was one more, at the end
    for phase in PHASES:
        assert seconds[phase] == pytest.approx(sum(line[phase] for line in lines))
