"""What a reward's first worker has read from local files stays, whatever becomes of the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rewards.settings import RewardSettings
from lmpg.language.rewards.worker_process import WorkerProcess
from tests.support.planted import catches

REWARD = """
import importlib, os
import neighbour
from parts import inner

def reward(completions):
    import late
    importlib.reload(neighbour)
    scores = [1 + neighbour.X + inner.X + late.X for _ in completions]
    if "hangs" in completions:
        os._exit(1)
    return scores

def place(completions):
    return [float(open(__file__ + ".data").read()) for _ in completions]
"""
FILES = {
    "mine.py": REWARD,
    "neighbour.py": "X = 10\n",
    "parts/__init__.py": "from . import inner\n",
    "parts/inner.py": "# coding: latin-1\nX = 100 * len('\xe4')\n",
    "late.py": "X = 1000\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="latin-1")
    return tmp_path


def scorer_of(folder: Path, *names: str, **settings) -> Scorer:
    functions = tuple(f"{folder / 'mine.py'}:{name}" for name in names)
    return Scorer(RewardSettings(functions=functions, timeout=20, **settings))


def totals(scorer: Scorer, *texts: str) -> list[float | None]:
    return scorer.score(["p"] * len(texts), list(texts), [[1]] * len(texts), {}).totals


@catches(
    "a worker that replaces another one imports what the files hold by then",
    "modules imported at a call are not kept",
    "compiled files are taken for kept ones",
)
@pytest.mark.parametrize("change", ["edited", "broken", "deleted"])
def test_files_that_change_while_a_run_goes_on_change_nothing_in_it(folder, change):
    with scorer_of(folder, "reward") as scorer:
        assert totals(scorer, "a", "hangs") == [1111.0, None]
        for name, text in FILES.items():
            if change == "edited":
                (folder / name).write_text(text.replace("X = 1", "X = 2").replace("1 +", "2 +"))
            elif change == "broken":
                (folder / name).write_text("this is no Python")
            else:
                (folder / name).unlink()
        assert totals(scorer, "a", "hangs", "b") == [1111.0, None, 1111.0]


def test_a_file_that_is_edited_takes_effect_in_the_next_run(folder):
    for number in ("10", "20"):
        (folder / "neighbour.py").write_text(f"X = {number}\n")
        with scorer_of(folder, "reward") as scorer:
            assert totals(scorer, "a") == [1101.0 + int(number)]


def test_a_reward_still_finds_the_files_that_lie_beside_it(folder):
    (folder / "mine.py.data").write_text("7")
    with scorer_of(folder, "place") as scorer:
        assert totals(scorer, "a") == [7.0]


def test_all_workers_of_a_function_have_one_source(folder):
    with scorer_of(folder, "reward", workers=3) as scorer:
        (folder / "mine.py").write_text(REWARD.replace("1 +", "2 +"))
        assert totals(scorer, "hangs", "hangs", "hangs") == [None] * 3
        assert totals(scorer, "a", "b", "c") == [1111.0] * 3


@catches("a worker keeps what it read first, though another one read otherwise before")
def test_a_worker_that_starts_while_a_file_is_edited_starts_again_with_the_first_source(folder):
    first = WorkerProcess(f"{folder / 'mine.py'}:reward", 20)
    first.start()
    second = WorkerProcess(first.spec, 20)  # it starts before the first has told what it read
    started = second._started

    def telling_late():
        reply = started()
        second.sources, second._started = first.sources, started
        return reply

    (folder / "mine.py").write_text(REWARD.replace("1 +", "2 +"))
    second._started = telling_late
    second.start()
    assert second.call({"completions": ["a"]}, 1, 20)["scores"] == [1111.0]
    first.stop()
    second.stop()


@catches("workers of one function keep sources of their own")
def test_the_sources_are_written_once_and_an_edited_one_beside_the_first(folder, tmp_path):
    kept = tmp_path / "run" / "reward_sources"
    kept.parent.mkdir()
    for _ in range(2):
        scorer = scorer_of(folder, "reward", "place")
        with scorer:
            scorer.keep_sources(kept)
            assert (kept / "mine.py").exists()
            totals(scorer, "a")
    (folder / "neighbour.py").write_text("X = 20\n")
    with scorer_of(folder, "reward") as scorer:
        scorer.keep_sources(kept)
    found = {str(p.relative_to(kept)): p.read_text("latin-1") for p in kept.rglob("*.*")}
    assert found == {**FILES, "neighbour_2.py": "X = 20\n"}
