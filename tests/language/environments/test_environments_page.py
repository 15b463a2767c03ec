"""docs/environments.md: its files run as they stand, and its numbers are the code's."""

from __future__ import annotations

import json
import re

import pytest

from lmpg.algorithms.shared.groups import Grouped
from lmpg.language.worlds.registry import WORLDS
from lmpg.language.worlds.tasks.guessing import best_mean
from lmpg.language.worlds.tasks.rooms_alike import BEST_RIGHT
from lmpg.runs.report.write import write_report
from tests.support.programs import ROOT, module_at, train_by_name
from tests.support.tiny import save_tiny

PAGE = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
OWN, TOOLS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SMALL = {
    "update.rollout-size": 4,
    "update.minibatch-size": 4,
    "update.microbatch-size": 4,
    "evaluation.size": 2,
    "run.total-steps": 1,
    "run.samples-every": 1,
    "environment.workers": 1,
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a tiny model and the page's files."""
    monkeypatch.chdir(tmp_path)
    save_tiny("model", max_position_embeddings=768)
    for text in (OWN, TOOLS):
        name = re.match(r"# (\w+\.py)", text)[1]
        (tmp_path / name).write_text(text)
    return tmp_path


def learned(name, folder, **flags):
    words = {"model.path": "model", "run.output-dir": folder, **SMALL, **flags}
    train_by_name(name, [x for key, value in words.items() for x in (f"--{key}", str(value))])
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert json.loads((folder / "summary.json").read_text())["exit_reason"] == "finished"
    return rows


def test_the_environment_of_the_page_is_twenty_lines_and_keeps_its_rules(here):
    lines = [line for line in OWN.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 20
    game = module_at(here / "backwards.py").Backwards()
    assert game.reset(seed=0, options={"word": "lamp"}) == ("spell lamp backwards", {})
    assert game.step("pmax") == ("no, once more", pytest.approx(0.075), False, False, {"state": 1})
    assert game.step("pmal")[1:3] == (1.1, True)
    assert game.step("pm")[3]
    assert module_at(here / "my_tools.py").add(1, 2) == 3
    assert len([line for line in TOOLS.splitlines() if line.strip()]) <= 10


def test_the_page_trains_in_its_environment(here):
    flags = {"environment.path": "backwards.py:Backwards", "environment.max-turns": 3}
    rows = learned("ppo", here / "own", **flags, **{"sampling.max-new-tokens": 6})
    for row in rows:
        assert row["prompt"] == "" or "backwards" in str(row["prompt"])
        assert [turn.get("observation") for turn in row["turns"][1:]] == ["no, once more"] * (
            len(row["turns"]) - 1
        )
        assert row["end"] in ("terminated", "truncated", "max_turns")
    text = write_report(here / "own").read_text(encoding="utf-8")
    assert "no, once more" in re.sub(r"<[^>]*>", "", text)
    assert text.count('class="turn"') >= sum(len(row["turns"]) for row in rows[:4])


@pytest.mark.slow
def test_the_page_trains_with_its_tool(here):
    (here / "sums.jsonl").write_text('{"prompt": "1 + 2", "answer": "3"}\n' * 8)
    flags = {"data.path": "sums.jsonl", "rewards.functions": "numeric_answer", "data.num-eval": 2}
    flags |= {"environment.tools": "my_tools.py:add", "sampling.max-new-tokens": 6}
    rows = learned("grpo", here / "tools", **flags, **{"algorithm.group-size": 2})
    assert all(len(row["turns"]) == 1 for row in rows)  # the tiny model has never heard of tools


def test_the_numbers_of_the_page_are_those_of_the_code():
    assert f"49/15 = {best_mean():.2f}" in PAGE
    assert f"√2 = {BEST_RIGHT:.3f}".replace("0.", ".") in PAGE
    fields = Grouped.model_fields
    assert fields["turn_gamma"].default == 0.95
    assert "`--algorithm.turn-gamma` (0.95)" in PAGE
    named = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)
    assert set(named) <= set(WORLDS)
    assert len(named) == 3
