"""`lmpg.train` in a notebook, in a REPL, in a script and in several processes."""

from __future__ import annotations

import code
import json
import runpy
import shutil
from pathlib import Path

import pytest
from accelerate.state import PartialState

import lmpg
from tests.support.planted import catches
from tests.support.programs import ROOT, launched, outcome
from tests.support.ranks import forked
from tests.support.tiny import save_tiny

NOTEBOOK = ROOT / "examples" / "train_in_a_notebook.ipynb"
SCRIPT = """
from pathlib import Path

import lmpg
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

WANTED = "a"


def wanted(completions):
    return [c.count(WANTED) / 10 for c in completions]


run = lmpg.train(
    "grpo",
    model=AutoModelForCausalLM.from_pretrained("tiny"),
    tokenizer=AutoTokenizer.from_pretrained("tiny"),
    data=Dataset.from_list([{"prompt": "abcdef"[: 1 + i % 6]} for i in range(40)]),
    rewards=[wanted, lambda completions: [len(c) / 100 for c in completions]],
    algorithm={"group_size": 2},
    sampling={"max_new_tokens": 8},
    update={"rollout_size": 8, "learning_rate": 1e-4},
    evaluation={"size": 4},
    run={"total_steps": 2, "output_dir": "out"},
    on_step=lambda step, metrics: None,
)
Path("said.txt").write_text(repr(run))
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with a tiny model in it."""
    save_tiny(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_notebook_trains_shows_a_bar_tables_and_the_report(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=where).execute()
    shown = {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    said = "".join(x.get("text", "") for x in shown[train_cell(shown)])
    assert "step" in said
    assert "/40" in said
    assert "step  1/40 |" not in said  # the console's line for each step
    assert "in the trainer's process, where a hang cannot be cut short" in said
    for name in ("run", "run.metrics"):
        assert "<table>" in shown[name][0]["data"]["text/html"]
    assert "<iframe srcdoc=" in shown["run.report()"][0]["data"]["text/html"]
    rewards = [row["reward"] for row in lmpg.load(next((tmp_path / "runs").iterdir())).metrics]
    assert rewards[-1] > rewards[0] + 0.2  # it learns


def train_cell(shown: dict[str, list]) -> str:
    """The source of the cell that trains."""
    return next(source for source in shown if "lmpg.train(" in source)


def test_the_notebook_holds_no_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [x for x in cells if x.get("outputs") or x.get("execution_count")] == []


@catches("a function typed into a REPL imported by a worker")
def test_a_repl_trains_twice_with_what_was_typed_into_it(here, capsys):
    console = code.InteractiveConsole({"__name__": "__main__"})
    for line in SCRIPT.splitlines():
        console.push(line)
    console.push("")
    first = outcome(Path("out"))
    shutil.move("out", "first")
    console.push("again = lmpg.load('first')")
    for line in SCRIPT.replace("said.txt", "said again.txt").splitlines():
        console.push(line)
    console.push("")
    assert "Traceback" not in capsys.readouterr().err
    assert outcome(Path("out")) == first  # and the first run left nothing behind that matters
    assert Path("said again.txt").read_text() == "Run('out', finished after 2 steps)"


@pytest.mark.slow
def test_a_script_gives_the_same_alone_by_accelerate_and_in_two_processes(here):
    (here / "script.py").write_text(SCRIPT)

    def by_accelerate() -> None:
        flags = ("--cpu", "--num_processes", 1, "--num_machines", 1, "--mixed_precision", "no")
        command = ("-m", "accelerate.commands.launch", *flags, here / "script.py")
        done = launched(*command, cwd=here)
        assert done.returncode == 0, done.stderr

    def in_one_of_two(rank: int) -> None:
        PartialState._reset_state()  # this process was alone before it was forked
        runpy.run_path("script.py", run_name="__main__")

    found = []
    for start in (
        lambda: runpy.run_path("script.py", run_name="__main__"),
        by_accelerate,
        lambda: forked(2, in_one_of_two),
    ):
        start()
        assert (here / "said.txt").read_text() == "Run('out', finished after 2 steps)"
        found.append(outcome(here / "out"))
        shutil.rmtree(here / "out")
        (here / "said.txt").unlink()
    assert found[0] == found[1]
    alone, together = (list(map(json.loads, x["samples"].splitlines())) for x in found[::2])
    for name in ("prompt", "completion", "score", "rewards"):  # others are rounded otherwise
        assert [row[name] for row in alone] == [row[name] for row in together]
    assert len(alone) == len(together) > 8
