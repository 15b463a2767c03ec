"""A process that cannot go on stops the others: at sampling, and where a disk is full."""

from __future__ import annotations

import errno
import os

import torch
from accelerate import PartialState

from lmpg.runs import checkpoint
from lmpg.runtime.processes import Processes
from lmpg.settings.section import RunStopped
from tests.support.planted import catches
from tests.support.ranks import forked


def fresh() -> Processes:
    PartialState._reset_state()  # this process was alone before it was forked
    return Processes()


@catches("one process stops and meets the others elsewhere")
def test_what_stops_one_process_stops_all_with_its_reason():
    def member(rank):
        processes, found = fresh(), []
        for stops in (False, True):
            try:
                with processes.stopped_alike():
                    if stops and rank == 1:
                        raise RunStopped("the server is gone")
                found.append("goes on")
            except RunStopped as error:
                found.append(str(error))
        return found

    assert forked(2, member) == [["goes on", "the server is gone"]] * 2


@catches("a full disk of the main process leaves the others amid a checkpoint of parts")
def test_a_disk_that_is_full_for_the_last_file_is_told_to_all_processes(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "_seal", full)

    def member(rank):
        processes = fresh()
        try:
            checkpoint.save_parts(tmp_path, 1, {"x": torch.ones(2)}, 1, processes)
        except OSError as error:
            return str(error), processes.gather_list([rank])
        return "saved"

    first, second = forked(2, member)
    assert first == second
    assert "No space left" in first[0]
    assert first[1] == [0, 1]
    assert checkpoint.newest_step(tmp_path) is None
