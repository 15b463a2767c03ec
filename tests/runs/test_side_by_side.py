"""A table of a folder of runs, and curves of runs side by side."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest
import yaml

from lmpg.cli.command import run as lmpg
from lmpg.runs.lock import hold, is_held, let_go
from lmpg.runs.side_by_side.compared_runs import compare
from lmpg.runs.side_by_side.grouped import T_975, averaged, half_width
from lmpg.runs.side_by_side.listed_runs import runs_in
from lmpg.settings.section import UserError
from tests.support.planted import catches


def made(folder, name="grpo", seed=0, rate=1e-3, steps=4, gain=0.1, finished=True, **after):
    """A run's folder with curves that rise by `gain` a step."""
    folder.mkdir(parents=True)
    config = {
        "model": {"path": None},
        "data": {"world": "addition"},
        "algorithm": {"name": name},
        "update": {"learning_rate": rate},
        "run": {"seed": seed, "total_steps": steps, "trackers": [], "torch_threads": seed},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [{"step": i, "reward": seed + gain * i, "grad_norm": 1.0} for i in range(1, steps + 1)]
    rows[1]["eval/reward"] = seed + 0.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        found = {"reward": seed + gain * steps, **after}
        summary = {"name": name, "exit_reason": "finished", "steps": steps}
        summary |= {"before": {"reward": float(seed)}, "after": found}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_the_table_of_runs_says_what_each_is_and_how_far_it_has_come(tmp_path, capsys):
    made(tmp_path / "runs" / "a")
    made(tmp_path / "runs" / "pipe" / "1_ppo", name="ppo", finished=False)
    held = made(tmp_path / "runs" / "busy", finished=False)
    broken = made(tmp_path / "runs" / "broken")
    (broken / "config.yaml").write_text("run: [")
    (tmp_path / "runs" / "notes").mkdir()
    hold(held)
    try:
        lmpg(["runs", str(tmp_path / "runs")])
    finally:
        let_go(held)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["run", "method", "model", "steps", "state"]
    cells = {row.split()[0]: row.split()[1:] for row in rows}
    arrow = ["reward", "0.000", "→", "0.400"]
    assert cells["a"] == ["grpo", "world:addition", "4/4", "finished", *arrow]
    assert cells["pipe/1_ppo"] == ["ppo", "world:addition", "4/4", "stopped", "–"]
    assert cells["busy"][:4] == ["grpo", "world:addition", "4/4", "running"]
    assert cells["broken"][3] == "unreadable"
    assert len(rows) == 4


def test_to_ask_whether_a_run_goes_on_takes_no_hold_of_it(tmp_path):
    folder = made(tmp_path / "a")
    assert not is_held(folder)
    hold(folder)
    assert is_held(folder)
    let_go(folder)
    assert not is_held(folder)
    assert {x.name for x in folder.iterdir()} - {".lock"} == {
        *("config.yaml", "metrics.jsonl", "summary.json")
    }


@catches("a normal distribution in place of Student's t", "the spread without its √n")
def test_the_interval_over_seeds_is_students(tmp_path):
    values = np.array([[1.0], [2.0], [6.0]])
    assert half_width(values)[0] == pytest.approx(4.303 * math.sqrt(7) / math.sqrt(3), rel=1e-3)
    assert half_width(values[:1])[0] == 0
    rng = np.random.default_rng(0)
    for count in (2, 4, 40):
        drawn = rng.normal(size=(count, 4000))
        held = np.abs(drawn.mean(0)) <= half_width(drawn)
        assert 0.93 <= held.mean() <= 0.97
    assert all(a > b for a, b in pairwise(T_975))


def test_curves_are_averaged_over_the_steps_that_all_have_come_to():
    long, short = [(1, 0.0), (2, 2.0), (3, 4.0), (4, 6.0)], [(1, 2.0), (3, 6.0)]
    found = averaged([long, short, []])
    assert found.steps.tolist() == [1, 3]
    assert found.mean.tolist() == [1.0, 5.0]
    assert averaged([long[:1], [(3, 1.0), (4, 1.0)]]) is None
    assert averaged([[]]) is None


@catches("runs of other settings in one curve", "the seed counted as a setting")
def test_runs_that_differ_in_their_seeds_alone_are_one_curve(tmp_path):
    for seed in range(3):
        made(tmp_path / f"a{seed}", seed=seed)
    made(tmp_path / "b", rate=1e-2)
    made(tmp_path / "c", name="ppo")
    found = compare([tmp_path])
    assert [(group.label, len(group.runs)) for group in found.groups] == [
        ("grpo (update.learning_rate 0.001)", 3),
        ("grpo (update.learning_rate 0.01)", 1),
        ("ppo", 1),
    ]
    curve = found.groups[0].logged("reward")
    assert curve.steps.tolist() == [1, 2, 3, 4]
    assert curve.mean == pytest.approx([1.1, 1.2, 1.3, 1.4])
    assert curve.high - curve.mean == pytest.approx([4.303 / math.sqrt(3)] * 4, rel=1e-3)
    held_out = found.groups[0].held_out("reward")
    assert held_out.steps.tolist() == [0, 2, 4]
    assert held_out.mean == pytest.approx([1.0, 1.5, 1.4])
    mean, half, count = found.groups[0].final("reward")
    assert (mean, count) == (pytest.approx(1.4), 3)
    assert half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)


def test_the_page_stands_alone_and_shows_text_as_text(tmp_path, capsys):
    made(tmp_path / "a0", name="<script>alert(1)</script>")
    made(tmp_path / "a1", name="<script>alert(1)</script>", seed=1)
    made(tmp_path / "b", name="ppo\x1b[31m", finished=False)
    lmpg(["compare", str(tmp_path), "--output", str(tmp_path / "new" / "page.html")])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert re.search(r"reward:\n  .*2 runs +0.500 → 0.900 ± 6.35\d\n  ppo.*–", shown)
    assert f"not finished: {tmp_path / 'b'}" in shown
    page = (tmp_path / "new" / "page.html").read_text()
    assert "<script>" not in page
    assert not re.search(r"(src|href)=", page)
    assert page.count("<polygon") >= 1
    assert "c1 band" in page
    assert "c2 band" not in page  # of a single run nothing is known


def test_nine_groups_all_have_a_colour(tmp_path):
    for i in range(9):
        made(tmp_path / f"a{i}", rate=10.0**-i)
    page = compare([tmp_path]).html()
    assert 'class="c8 ' in page
    assert 'class="c9' not in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs", "{folder}/nowhere"], "nowhere is no folder, expected one with runs"),
        (["runs", "{folder}"], "holds no run of lmpg, expected a run's folder"),
        (["runs", "a", "b"], "expected one folder of runs"),
        (["compare"], "expected folders of runs to compare"),
        (["compare", "{folder}"], "holds no run of lmpg"),
        (["compare", "a", "--metric", "x"], "unknown flag --metric"),
        (["compare", "a", "--output"], "--output needs a value"),
    ],
)
def test_folders_without_runs_are_refused(words, message, tmp_path):
    with pytest.raises(UserError, match=message):
        lmpg([word.format(folder=tmp_path) for word in words])


def test_help_of_both_says_how_they_are_called(capsys):
    lmpg(["runs", "--help"])
    lmpg(["compare", "--help"])
    assert capsys.readouterr().out.count("usage: lmpg ") == 2


def test_a_run_named_by_itself_is_compared_too(tmp_path):
    folders = [made(tmp_path / name, name=name) for name in ("grpo", "ppo")]
    assert [group.label for group in compare(folders).groups] == ["grpo", "ppo"]
    assert [run.folder for run in runs_in(folders[0])] == folders[:1]
