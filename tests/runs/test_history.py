"""Logs are read piece by piece, small in memory, and long runs give small pages in little time."""

from __future__ import annotations

import json
import time

import pytest

from lmpg.runs.report.history import MOST_POINTS, Curve, History, spread
from lmpg.runs.report.write import write_report
from tests.support.planted import catches


@catches("every point of a long run kept in memory")
def test_a_curve_keeps_its_means_and_its_last_point_however_long_it_is():
    curve = Curve()
    for step in range(1, 20_001):
        curve.add(step, step % 2)
    assert MOST_POINTS <= len(curve.points) <= 2 * MOST_POINTS
    assert curve.last == (20_000, 0)
    xs = [x for x, _ in curve.points]
    assert xs == sorted(xs)
    assert all(y == pytest.approx(0.5, abs=0.04) for _, y in curve.points)


def test_a_short_curve_is_as_it_was_logged():
    curve = Curve()
    points = [(float(i), float(i * i)) for i in range(2 * MOST_POINTS - 1)]
    for point in points:
        curve.add(*point)
    assert curve.points == points


@catches("lines read twice by a report that is written again", "half a line read as a whole one")
def test_reading_goes_on_where_it_stopped(tmp_path):
    path, history = tmp_path / "metrics.jsonl", History(tmp_path)
    history.read()
    assert history.curves == {}
    path.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n{"step": 3, "a"')
    history.read()
    assert history.points("a") == [(1, 1.0), (2, 2.0)]
    with path.open("a") as file:
        file.write(': 3.0, "b": null}\nno json\n{"step": 4, "a": true}\n')
    history.read()
    assert history.points("a") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert history.last_step == 4
    assert set(history.curves) == {"a"}


def test_of_many_samples_few_steps_are_read_those_with_tokens_among_them(tmp_path):
    with (tmp_path / "samples.jsonl").open("w") as file:
        for step in range(1, 1001):
            tokens = {"tokens": {"texts": ["a"]}} if step in (1, 200, 490, 900) else {}
            for i in range(2):
                said = '"tokens": {}' if step == 3 else "x"
                file.write(json.dumps({"step": step, "completion": said, "i": i, **tokens}) + "\n")
    history = History(tmp_path)
    history.read()
    found = history.samples()
    assert {1, 900, 1000} <= found.keys()
    assert len(found) <= 10
    assert [row["i"] for row in found[1]] == [0, 1]
    assert [step for step in found if "tokens" in found[step][0]] == [1, 490, 900]


@pytest.mark.parametrize("count", [0, 1, 3, 7, 100])
def test_steps_are_spread_from_first_to_last(count):
    steps = list(range(5, 5 + count))
    found = spread(steps, 5)
    assert len(found) == min(count, 5)
    assert not steps or (found[0], found[-1]) == (steps[0], steps[-1])


def test_twenty_thousand_steps_make_a_small_page_soon(tmp_path):
    names = [*(f"m/{i}" for i in range(24)), "reward", "objective/kl", "policy/entropy"]
    values = "".join(f', "{name}": 1.{i}2345%d' for i, name in enumerate(names))
    numbers = [0.12345, -1.234e-5] * 128
    tokens = {"texts": ["<b>&"] * 256, "length": 4000, "prompt": "p" * 2000}
    tokens |= dict.fromkeys(("advantage", "value", "kl", "entropy", "ratio"), numbers)
    view = f', "tokens": {json.dumps(tokens)}'
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1, 20_001):
            file.write(f'{{"step": {step}{values % ((step % 7,) * len(names))}}}\n')
    with (tmp_path / "samples.jsonl").open("w") as file:
        for step in (1, *range(10, 20_001, 10)):
            row = f'{{"step": {step}, "prompt": "{"p" * 100}", "completion": "{"c" * 500}"'
            file.write(8 * f"{row}{view if step == 1 or step % 1250 == 0 else ''}}}\n")
    start = time.process_time()
    history = History(tmp_path)
    path = write_report(tmp_path, {}, history)
    assert time.process_time() - start <= 3
    assert path.stat().st_size <= 3e6
    start = time.process_time()
    write_report(tmp_path, {}, history)  # as while it goes on
    assert time.process_time() - start <= 1
