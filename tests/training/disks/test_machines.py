"""Machines that do not see one another's disks train as one process does."""

from __future__ import annotations

import errno
import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from lmpg.language.worlds.cache import cached
from lmpg.language.worlds.made_by_main import made_by_main
from lmpg.runs import checkpoint
from lmpg.runs.folder import RunFolder
from lmpg.settings.section import UserError
from lmpg.training.disks import copied_folders
from lmpg.training.disks.copied_folders import copied, listing
from lmpg.training.disks.same_files import (
    refuse_other_files,
    refuse_run_elsewhere,
    require_one_disk,
)
from lmpg.training.given import GIVEN, Given, kept
from tests.support.planted import catches
from tests.support.programs import metrics, own_parts, run_here, weights
from tests.support.ranks import on_machines


def refused(action) -> str:
    """What an action is refused with."""
    try:
        action()
    except UserError as error:
        return str(error)
    return "nothing"


@catches(
    "two machines hang after the last step of a run",
    "each machine looks for checkpoints on its own disk",
    "each process reads the checkpoint from its own disk",
)
def test_a_run_is_trained_and_resumed_where_one_machine_alone_has_its_folder(tmp_path):
    parts = own_parts(tmp_path / "parts")
    alone = run_here("ppo", {**parts, "run.output-dir": tmp_path / "alone"})

    def trained(processes, **flags):
        run_here("ppo", {**parts, "run.output-dir": "run", "run.save-every": 1, **flags})
        return os.path.exists("run"), processes.machines

    begun = on_machines(tmp_path, partial(trained, **{"run.total-steps": 2}))
    assert begun == [(True, 2), (False, 2)]
    on_machines(tmp_path, partial(trained, **{"run.resume": True}))
    assert os.listdir(tmp_path / "1") == []
    found = weights(tmp_path / "0" / "run")
    for name, x in weights(alone).items():
        assert float((found[name] - x).abs().max() / x.abs().max()) <= 1e-5
    for line, other in zip(metrics(tmp_path / "0" / "run"), metrics(alone), strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-5, nan_ok=True)


def made_here(path: Path, name: str) -> None:
    (path / "deep").mkdir()
    (path / "deep" / "rank").write_text(name)
    (path / "empty").touch()


@catches("each machine makes a world of its own")
def test_a_world_is_that_of_the_main_process_on_every_machine(tmp_path):
    def build(processes):
        make = partial(made_here, name=str(processes.rank))
        folder = made_by_main(processes, lambda: cached("world", {"version": 1}, make))
        return str(folder), (folder / "deep" / "rank").read_text(), len(listing(folder))

    first, second = on_machines(tmp_path, build)
    assert first[0] != second[0]
    assert first[1:] == second[1:] == ("0", 3)
    assert on_machines(tmp_path, build)[1] == second


def test_objects_of_python_lie_on_every_machine_as_the_main_process_was_given_them(tmp_path):
    from lmpg.language.stages.settings import SftSettings

    def given(processes):
        folder = RunFolder(Path("run"), "fresh", {"data": {"path": "memory:data"}})
        if processes.is_main:
            folder.path.mkdir()
        write = partial(Path.write_text, data=f"of rank {processes.rank}")
        settings = SftSettings(data={"path": "memory:data"}, model={"path": "some/model"})
        found = kept(Given({"memory:data": write}), settings, folder, processes)
        return Path(found.data.path).read_text()

    assert on_machines(tmp_path, given) == ["of rank 0"] * 2
    assert (tmp_path / "1" / "run" / GIVEN).is_dir()


@catches("a copy is taken for whole by the names of its files")
def test_a_folder_is_copied_where_it_differs_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(copied_folders, "PIECE", 7)
    for rank, text in enumerate(("0123456789abcdef", "other")):
        folder = tmp_path / str(rank) / "final"
        folder.mkdir(parents=True)
        (folder / "model").write_text(text)
        (folder / "empty").touch()

    def copy(processes):
        found = []
        for name in ("empty", "one more" if processes.rank else "empty"):
            Path("final", name).touch()
            copied(Path("final"), processes)
            found.append(listing(Path("final")))
        return found

    first, second = on_machines(tmp_path, copy)
    assert first == second
    assert second[0] == second[1]
    assert [name for name, _, _ in second[0]] == ["empty", "model"]


@catches("a full disk of another machine is found out by nobody")
def test_a_machine_with_a_full_disk_ends_the_run_on_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(copied_folders, "_append", full)

    def copy(processes):
        if processes.is_main:
            Path("final").mkdir()
            Path("final", "model").write_text("abc")
        return refused(lambda: copied(Path("final"), processes)), os.listdir()

    first, second = on_machines(tmp_path, copy)
    assert "cannot take over what the main process has" in first[0]
    assert "No space left on device" in first[0]
    assert second == (first[0], [])


@catches("a full disk of the main process leaves the others waiting")
def test_a_full_disk_of_the_main_process_ends_all_with_the_step_that_was_saved(tmp_path):
    parts = own_parts(tmp_path / "parts") | {"run.output-dir": "run", "run.save-every": 1}

    def trained(processes):
        write = checkpoint._write

        def full(folder, target, step, state):
            if step == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(folder, target, step, state)

        checkpoint._write = full
        return refused(lambda: run_here("ppo", parts))

    found = on_machines(tmp_path, trained)
    assert found[0] == found[1]
    assert "No space left on device. The last is of step 1; make room" in found[0]


@catches("machines learn from different data")
def test_a_machine_with_other_files_is_refused_by_name(tmp_path):
    def look(processes):
        Path("a.jsonl").write_text(str(processes.rank))
        inputs = {"data.path": {"a.jsonl": Path("a.jsonl"), "same": "text"}}
        return refused(lambda: refuse_other_files(inputs, processes))

    found = on_machines(tmp_path, look)
    assert found[0] == found[1]
    assert found[0].startswith("data.path: a.jsonl on the machine ")
    assert "of rank 1 is not what the main process has" in found[0]


def test_a_run_that_lies_on_another_machine_is_not_begun_anew(tmp_path):
    def look(processes):
        Path("run").mkdir()
        if not processes.is_main:
            Path("run", "config.yaml").touch()
        folder = RunFolder(Path("run"), "fresh")
        return refused(lambda: refuse_run_elsewhere(folder, processes))

    found = on_machines(tmp_path, look)
    assert found[0] == found[1]
    assert "holds a run there, the first machine does not" in found[0]
    shutil.rmtree(tmp_path / "1" / "run")


@catches("parts of a checkpoint are written to disks that nobody reads them from")
@pytest.mark.parametrize("shared", [True, False])
def test_weights_that_are_shared_out_need_one_disk(tmp_path, shared):
    def look(processes):
        Path("run").mkdir()
        folder = RunFolder(tmp_path / "0" / "run" if shared else Path("run"), "fresh")
        processes.sharing = SimpleNamespace(company=SimpleNamespace(come_to=lambda: None))
        return refused(lambda: require_one_disk(folder, processes)), os.listdir("run")

    found = on_machines(tmp_path, look)
    assert found[0] == found[1]
    assert ("nothing" if shared else "is not seen by the machine") in found[0][0]
    assert found[0][1] == []
