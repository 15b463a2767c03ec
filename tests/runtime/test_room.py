"""How much memory there is."""

from __future__ import annotations

from types import SimpleNamespace

import psutil

from lmpg.runtime import room as room_module
from lmpg.runtime.room import limits, room
from tests.support.planted import catches


def group(folder, limit, used, droppable=0, version=2):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, number in zip(names, (limit, used)):
        (folder / name).write_text(f"{number}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {droppable}\n")


@catches("the limit of a group above the own one passed over")
def test_the_limits_of_all_control_groups_above_count(tmp_path):
    group(tmp_path / "pod" / "job", "max", 300)
    group(tmp_path / "pod", 1000, 400, droppable=150)
    mine = tmp_path / "mine"
    mine.write_text("0::/pod/job\n")
    assert limits(tmp_path, mine) == [(1000, 250)]


def test_the_first_version_of_control_groups_is_read_too(tmp_path):
    group(tmp_path / "memory" / "job", 2000, 700, version=1)
    mine = tmp_path / "mine"
    mine.write_text("5:cpu,cpuacct:/other\n4:memory:/job\n")
    assert limits(tmp_path, mine) == [(2000, 700)]


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert limits(tmp_path, tmp_path / "missing") == []
    (tmp_path / "mine").write_text("0::/\n")
    assert limits(tmp_path, tmp_path / "mine") == []


@catches("the machine's memory taken for what a container may use")
def test_a_limit_below_the_machines_memory_is_what_there_is(monkeypatch):
    machine = psutil.virtual_memory()
    monkeypatch.setattr(room_module, "limits", lambda: [(4 * 2**20, 3 * 2**20), (2**60, 0)])
    assert room("cpu") == (4 * 2**20, 2**20)
    monkeypatch.setattr(room_module, "limits", list)
    assert room("cpu")[0] == machine.total


@catches("memory that is free between blocks given back at every turn")
@catches("gaps that grow with every phase")
def test_gaps_go_back_where_more_is_held_than_a_phase_without_gaps_has_needed(monkeypatch):
    # after loading, sampling, learning (clean), sampling, learning, learning of longer rows
    held = [100, 150, 200, 204, 209, 211, 230, 235, 240, 243]
    given, process = [], SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=held[len(told)]))
    monkeypatch.setattr(room_module.psutil, "Process", lambda: process)
    monkeypatch.setattr(room_module, "give_back_freed_memory", lambda: given.append(True))
    gaps, told = room_module.Gaps(), []
    for _ in held:
        gaps.give_back()
        told.append(len(given))
    assert [b - a for a, b in zip([0, *told], told)] == [0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
