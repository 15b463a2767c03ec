"""What a run writes to the disk is known before its first step, and nothing is written twice."""

from __future__ import annotations

import shutil

import pytest
import torch

from lmpg.runs import checkpoint, disk
from lmpg.runs.disk import disk_lines
from lmpg.runs.saved.state_encoding import num_bytes
from lmpg.settings.section import UserError
from lmpg.training.loop import Loop
from tests.support.agents import AGENT, agent, saved
from tests.support.planted import catches

GB = 10**9


def having(monkeypatch, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))


@catches("the optimizer's moments left out of what a checkpoint takes")
def test_the_size_of_a_checkpoint_is_known_before_the_first_step(tmp_path, monkeypatch):
    foretold = []

    def told(self):
        foretold.append(num_bytes(self.state()) + self.bytes_to_come())
        return []

    monkeypatch.setattr(Loop, "refuse_full_disk", told)
    folder = agent({**AGENT, "run.output-dir": tmp_path / "run"})
    _, state = checkpoint.newest(folder / "checkpoints")
    weights = num_bytes(state["policy"])
    (path,) = (folder / "checkpoints" / "step_4").glob("*.safetensors")
    assert abs(foretold[0] - path.stat().st_size) < 0.1 * path.stat().st_size
    moments = num_bytes(state["updater"])
    assert 2 * weights <= moments <= 2 * weights + 4 * len(state["policy"])  # and step counters


def test_a_tensor_that_stands_at_two_places_is_counted_and_written_once(tmp_path):
    shared = torch.zeros(1000)
    state = {"a": shared, "b": [shared, shared.detach()], "c": torch.zeros(10)}
    assert num_bytes(state) == 4040
    path = checkpoint.save(tmp_path, 1, state, keep=2) / "tensors.safetensors"
    assert path.stat().st_size < 4040 + 500


def test_a_disk_without_room_for_a_checkpoint_is_refused_by_name(tmp_path, monkeypatch):
    having(monkeypatch, GB)
    with pytest.raises(UserError, match=r"run\.output_dir = .*1\.00 GB free, expected 1\.60 GB"):
        disk_lines(tmp_path, int(1.6 * GB), GB, 1, 2)
    having(monkeypatch, 1000)
    run = tmp_path / "run"
    with pytest.raises(UserError, match="which one checkpoint takes"):
        agent({**AGENT, "run.output-dir": run})
    assert not run.exists()


def test_the_need_and_a_disk_that_may_be_full_are_said(tmp_path, monkeypatch):
    having(monkeypatch, 9 * GB)
    (said,) = disk_lines(tmp_path, 2 * GB, GB, 2, 2)
    assert "2.00 GB per checkpoint, at most 3 at once with run.keep_checkpoints = 2" in said
    assert "8.00 GB; 9.00 GB are free" in said
    lines = disk_lines(tmp_path, 2 * GB, GB, 2, 3)
    assert "warning" in lines[1]
    (tmp_path / "checkpoints" / "step_1").mkdir(parents=True)  # takes its room already
    assert len(disk_lines(tmp_path, 2 * GB, GB, 2, 3)) == 1
    assert disk_lines(tmp_path, disk.WORTH_A_LINE - 1, 0, 1, 2) == []


def test_never_more_checkpoints_are_there_than_was_said(tmp_path, monkeypatch):
    most, write = [], checkpoint._write

    def counting(folder, *rest):
        write(folder, *rest)
        most.append(len(list(folder.glob("step_*"))))

    monkeypatch.setattr(checkpoint, "_write", counting)
    folder = agent({**AGENT, "run.output-dir": tmp_path / "run", "run.keep-checkpoints": 2})
    assert max(most) == 3
    assert len(saved(folder)) == 2
