from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from lmpg.language.worlds.cache import MANIFEST, cache_folder, cached
from lmpg.settings.section import UserError
from tests.support.planted import catches

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LMPG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Writes two files and counts how often it was asked to."""

    def __init__(self, content: str = "x") -> None:
        self.calls = 0
        self.content = content

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "inner").mkdir()
        (folder / "inner" / "model").write_text(self.content)
        (folder / "facts").write_text("1")


def test_a_stage_is_made_once_per_settings(cache):
    make = Maker()
    first = cached("stage", {"a": 1, "b": 2}, make)
    assert first.parent == cache
    assert (first / "inner" / "model").read_text() == "x"
    assert cached("stage", {"b": 2, "a": 1}, make) == first
    assert make.calls == 1
    assert cached("stage", {"a": 1, "b": 3}, make) != first
    assert cached("other", {"a": 1, "b": 2}, make) != first
    assert make.calls == 3


def test_the_manifest_says_what_a_stage_was_made_from(cache):
    folder = cached("stage", {"seed": 7}, Maker())
    assert json.loads((folder / MANIFEST).read_text())["settings"] == {"seed": 7, "threads": 1}


@pytest.mark.parametrize(
    "tear",
    [
        lambda folder: (folder / "inner" / "model").write_text("y"),
        lambda folder: (folder / "inner" / "model").unlink(),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_text('{"files": '),
        lambda folder: (folder / MANIFEST).write_text("[]"),
    ],
)
def test_a_torn_stage_is_made_again(cache, tear):
    make = Maker()
    folder = cached("stage", {}, make)
    tear(folder)
    assert cached("stage", {}, make) == folder
    assert make.calls == 2
    assert (folder / "inner" / "model").read_text() == "x"
    assert cached("stage", {}, make) == folder
    assert make.calls == 2


def test_a_failed_making_leaves_nothing_that_counts(cache):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cached("stage", {}, fail)
    folder = cached("stage", {}, Maker())
    assert not (folder / "half").exists()
    assert [path for path in cache.iterdir() if path.name.endswith(".tmp")] == []


def slowly_made(calls: Path, told: Connection) -> None:
    """What each of two processes does: asks for a stage whose making takes a moment."""

    def make(folder: Path) -> None:
        with calls.open("a") as file:
            file.write("made\n")
        time.sleep(0.5)
        (folder / "model").write_text("x")

    told.send(str(cached("stage", {}, make)))


def test_two_processes_at_once_make_a_stage_once(cache, tmp_path):
    calls, pipes = tmp_path / "calls", [FORK.Pipe(duplex=False) for _ in range(2)]
    running = [FORK.Process(target=slowly_made, args=(calls, sending)) for _, sending in pipes]
    for process in running:
        process.start()
    said = [receiving.recv() for receiving, _ in pipes if receiving.poll(60)]
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0]
    assert said[0] == said[1]
    assert calls.read_text() == "made\n"


def never_made(told: Connection) -> None:
    """What a process does that is killed while it makes a stage."""

    def make(folder: Path) -> None:
        (folder / "half").write_text("x")
        told.send("making")
        signal.pause()

    cached("stage", {}, make)


def test_a_killed_process_does_not_block_the_next(cache):
    receiving, sending = FORK.Pipe(duplex=False)
    process = FORK.Process(target=never_made, args=(sending,))
    process.start()
    assert receiving.poll(60)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    make = Maker()
    assert (cached("stage", {}, make) / "inner" / "model").read_text() == "x"
    assert make.calls == 1


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("LMPG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "lmpg"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "lmpg"
    monkeypatch.setenv("LMPG_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_a_cache_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LMPG_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file cannot be written .*; set LMPG_CACHE to a folder"):
        cached("stage", {}, Maker())


@catches("a world made with as many threads as the machine that happens to make it has")
def test_a_world_is_made_with_one_thread_on_any_machine(cache):
    seen, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cached("stage", {"seed": 7}, lambda folder: seen.append(torch.get_num_threads()))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


@catches("a cache on a file system without locks ends in a traceback")
def test_where_nothing_can_be_locked_a_folder_is_made_all_the_same(cache, monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = cached("thing", {"a": 1}, lambda path: (path / "x").write_text("made"))
    assert (folder / "x").read_text() == "made"
