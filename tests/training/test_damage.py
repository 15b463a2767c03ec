"""Damaged, deleted and half-written files of a run never block what is whole beside them."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from lmpg.gym.environments.agent import Agent
from lmpg.runs import checkpoint
from lmpg.runs.files import sha256
from lmpg.runs.folder import read_summary
from lmpg.runs.report.write import write_report
from lmpg.settings.section import UserError
from tests.support.agents import AGENT, FINISHED, agent, resumed, saved
from tests.support.planted import catches


@pytest.fixture
def flags(tmp_path):
    return {**AGENT, "run.output-dir": tmp_path / "run"}


@pytest.fixture
def longer(flags):
    """A run of two steps, each with its checkpoint, that is to go on to the fourth."""
    folder = agent({**flags, "run.total-timesteps": 128})
    assert saved(folder) == ["step_1", "step_2"]
    return folder


def rewritten(path: Path, text: str) -> None:
    """A file of a checkpoint with other content, in the manifest too."""
    path.write_text(text)
    manifest = path.with_name("manifest.json")
    found = json.loads(manifest.read_text())
    found["files"][path.name] = {
        "size": path.stat().st_size,
        "sha256": sha256(path),
    }
    manifest.write_text(json.dumps(found))


ODD = ("[]", "3", "null", '"x"', "{}", '{"format": 1}', '{"format": 1, "files": []}', "[" * 100_000,
       '{"format": 1, "files": {}}', '{"format": 1, "files": {"state.json": 3}}')  # fmt: skip


@catches("odd JSON in one checkpoint makes the one before it unusable")
def test_odd_json_in_the_newest_checkpoint_leaves_the_one_before_usable(flags, longer, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(longer, whole)
    for text in ODD:
        for name in ("manifest.json", "state.json"):
            (longer / "checkpoints" / "step_2" / "manifest.json").parent.mkdir(exist_ok=True)
            for file in (whole / "checkpoints" / "step_2").iterdir():
                shutil.copy(file, longer / "checkpoints" / "step_2")
            path = longer / "checkpoints" / "step_2" / name
            if name == "manifest.json":
                path.write_text(text)
            else:
                rewritten(path, text)
            found = [step for step, _ in checkpoint.whole(longer / "checkpoints")]
            assert found in ([1], [2, 1]), text  # the latter: whole, but no state of this run
    assert resumed(flags) == FINISHED


def test_a_run_that_fits_none_of_its_checkpoints_is_not_begun_anew(flags, longer):
    for step in (1, 2):
        rewritten(longer / "checkpoints" / f"step_{step}" / "state.json", '{"policy": 3}')
    before = (longer / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"no checkpoint in .* fits the model and the settings"):
        resumed(flags)
    assert (longer / "metrics.jsonl").read_bytes() == before


def test_odd_summaries_and_logs_block_neither_resume_nor_report(flags, longer):
    log = (longer / "metrics.jsonl").read_text()
    (longer / "metrics.jsonl").write_text(log + '[]\n3\n{"reward": 1}\n{"step": "x", "a": 1}\n{')
    for text in (*ODD, "", '{"exit_reason": "finished", "before": 3, "best": []}'):
        (longer / "summary.json").write_text(text)
        assert set(read_summary(longer)) <= {"exit_reason", "format", "files"}
        write_report(longer)
    assert resumed(flags) == FINISHED


@catches("report.html never made where a kill fell before it")
def test_a_report_that_a_kill_prevented_is_made_by_the_next_resume(flags, longer):
    flags["run.total-timesteps"] = 128
    before = (longer / "report.html").read_text()
    (longer / "report.html").unlink()
    assert resumed(flags) == [1, 2]
    assert (longer / "report.html").read_text() == before


@catches("the report of a run that went on taken for that of its end")
def test_a_report_from_before_the_end_is_made_anew_by_the_next_resume(flags, longer):
    flags["run.total-timesteps"] = 128
    before = (longer / "report.html").read_text()
    (longer / "report.html").write_text("still running")
    ended = (longer / "summary.json").stat().st_mtime_ns
    os.utime(longer / "report.html", ns=(ended - 1, ended - 1))
    assert resumed(flags) == [1, 2]
    assert (longer / "report.html").read_text() == before


def test_deleted_logs_do_not_block_a_resume(flags, longer, capsys):
    for name in ("metrics.jsonl", "samples.jsonl"):
        (longer / name).unlink()
    assert resumed(flags) == [3, 4]
    assert "without the lines that are gone" in capsys.readouterr().out


@catches("a third checkpoint stays after a kill while pruning")
def test_what_a_kill_while_pruning_left_is_gone_at_the_end(flags, longer):
    shutil.copytree(longer / "checkpoints" / "step_1", longer / "checkpoints" / "step_0")
    (longer / "checkpoints" / ".tmp-old-step_9").mkdir()
    (longer / "summary.json").unlink()
    flags["run.total-timesteps"] = 128
    assert resumed(flags) == [1, 2]
    assert saved(longer) == ["step_1", "step_2"]


@catches("final/ or best/ written in place")
def test_a_half_written_model_never_stands_under_its_name(flags, longer, monkeypatch):
    def dying(self, folder):
        (folder / "policy.json").write_text("half")
        raise KeyboardInterrupt

    before = {x.name: x.read_bytes() for x in (longer / "final").iterdir()}
    monkeypatch.setattr(Agent, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        resumed(flags)
    assert {x.name: x.read_bytes() for x in (longer / "final").iterdir()} == before
    assert not list(longer.glob("*.tmp"))


@catches("weights with mode 0600 beside files with 0644")
def test_all_files_have_the_permissions_that_the_umask_leaves(flags):
    before = os.umask(0o027)
    try:
        folder = agent(flags)
    finally:
        os.umask(before)
    files = [x for x in folder.rglob("*") if x.is_file()]
    assert {stat.filemode(x.stat().st_mode) for x in files} == {"-rw-r-----"}


@catches("a finished run whose model was deleted is called finished, and has none")
def test_a_model_that_was_deleted_is_made_again_from_the_last_checkpoint(flags):
    folder = agent(flags)
    before = {x.name: x.read_bytes() for x in (folder / "final").iterdir()}
    shutil.rmtree(folder / "final")
    assert resumed(flags) == FINISHED
    assert {x.name: x.read_bytes() for x in (folder / "final").iterdir()} == before
    for name in ("final", "checkpoints"):
        shutil.rmtree(folder / name)
    assert resumed(flags) == FINISHED  # what cannot be made again does not cost the rest


def test_resuming_where_no_run_is_or_without_its_fingerprints_is_told(flags, capsys, caplog):
    assert resumed({**flags, "run.total-timesteps": 128}) == [1, 2]
    assert "run holds no run to go on with: a new one begins" in capsys.readouterr().out
    (flags["run.output-dir"] / "inputs.json").unlink()
    assert resumed(flags) == FINISHED
    assert caplog.text.count("inputs.json is missing or holds no fingerprints") == 1
