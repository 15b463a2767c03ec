"""A resumed run goes on with the data, rewards and models that it began with, or says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lmpg.runs.resumable import changes
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.programs import metrics, own_parts, run_here

LENGTH = {"run.total-steps": 1, "evaluation.size": 1, "sampling.max-new-tokens": 4}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Parts, a run of one step on them, and its flags."""
    folder = tmp_path_factory.mktemp("begun")
    parts = own_parts(folder / "parts")
    (folder / "parts" / "helper.py").write_text("PENALTY = 20\n")
    reward = folder / "parts" / "reward.py"
    reward.write_text("import helper\n" + reward.read_text())
    (folder / "held_out.jsonl").write_text('{"prompt": "ab", "number": 1}\n' * 5)
    flags = {**parts, **LENGTH, "data.eval-path": folder / "held_out.jsonl"}
    run_here("ppo", {**flags, "run.output-dir": folder / "run"})
    return folder, flags


@pytest.fixture
def copied(begun, tmp_path):
    """The same in a folder of the test's own: moved, therefore."""
    folder, flags = begun
    shutil.copytree(folder, tmp_path / "copy")
    moved = {k: str(v).replace(str(folder), str(tmp_path / "copy")) for k, v in flags.items()}
    run = {"run.output-dir": tmp_path / "copy" / "run", "run.resume": True, "run.total-steps": 2}
    return tmp_path / "copy", {**moved, **run}


def appended(path, text):
    path.write_text(path.read_text() + text)


def weights_scaled(path):
    tensors = {name: x * 1.01 for name, x in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


CHANGES = {
    "parts/prompts.jsonl": lambda path: appended(path, '{"prompt": "new", "number": 1}\n'),
    "held_out.jsonl": lambda path: appended(path, '{"prompt": "new", "number": 1}\n'),
    "parts/reward.py": lambda path: appended(path, "# another\n"),
    "parts/helper.py": lambda path: appended(path, "PENALTY = 2\n"),
    "parts/model/model.safetensors": weights_scaled,
    "parts/model/tokenizer.json": lambda path: appended(path, "\n"),
    "parts/model/generation_config.json": lambda path: appended(path, "\n"),
}
KEYS = ("data.path", "data.eval_path", "rewards.functions", "rewards.functions")


@catches("data, rewards or models changed under the same path taken in silence")
def test_every_changed_input_is_refused_by_name_and_nothing_is_touched(copied):
    folder, flags = copied
    for (name, change), key in zip(CHANGES.items(), (*KEYS, *["model.path"] * 3)):
        path = folder / name
        before = path.read_bytes()
        held = {x: x.read_bytes() for x in (folder / "run").rglob("*") if x.is_file()}
        change(path)
        with pytest.raises(UserError) as error:
            run_here("ppo", flags)
        first, last = str(error.value).splitlines()
        assert first == f"{key}: {path} has changed since the run in {folder / 'run'} began"
        assert "--run.resume-anyway" in last
        assert {x: x.read_bytes() for x in (folder / "run").rglob("*") if x.is_file()} == held
        path.write_bytes(before)


def test_moved_inputs_in_another_working_directory_are_no_change(copied, monkeypatch):
    folder, flags = copied
    monkeypatch.chdir(folder / "parts")
    here = {"data.path": "prompts.jsonl", "rewards.functions": "reward.py:letters"}
    run_here("ppo", {**flags, **here, "model.path": "./model"})
    assert [line["step"] for line in metrics(folder / "run")] == [1, 2]


def test_resume_anyway_takes_changed_inputs_with_a_warning_and_for_good(copied, capsys):
    folder, flags = copied
    CHANGES["parts/helper.py"](folder / "parts" / "helper.py")
    del flags["run.resume"]
    run_here("ppo", {**flags, "run.resume-anyway": True})
    said = capsys.readouterr().out
    assert f"warning: rewards.functions: {folder / 'parts' / 'helper.py'} has changed" in said
    run_here("ppo", {**flags, "run.resume": True, "run.total-steps": 3})
    assert [line["step"] for line in metrics(folder / "run")] == [1, 2, 3]


def test_a_run_of_a_version_without_fingerprints_resumes_and_has_them_from_then_on(copied, begun):
    folder, flags = copied
    (folder / "run" / "inputs.json").unlink()
    for key, value in begun[1].items():  # without them the paths must be those of before
        flags[key] = value
    run_here("ppo", {**flags, "run.total-steps": 2})
    known = json.loads((folder / "run" / "inputs.json").read_text())["inputs"]
    assert {"helper", "reward.py"} <= {name[3:] for name in known["rewards.functions"]}


def test_a_teacher_may_lie_elsewhere_when_a_run_is_resumed():
    old = {"model": {"path": "m", "teacher": "runs/a/given/teacher"}}
    new = {"model": {"path": "m", "teacher": "memory:teacher"}}
    known = {"model.teacher": {}}
    assert changes(old, new, Path("run"), known, {}) == []
    with pytest.raises(UserError, match=r"model\.teacher"):
        changes(old, new, Path("run"), {}, {})


def test_another_function_of_the_file_is_another_run(copied):
    _, flags = copied
    other = flags["rewards.functions"].replace(":letters", ":coarse")
    with pytest.raises(UserError, match=r"rewards\.functions = .*coarse.*, but the run in"):
        run_here("ppo", {**flags, "rewards.functions": other})
