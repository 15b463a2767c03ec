"""A folder is held by one live process, also where files vanish or nothing can be locked."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from lmpg.runs import lock
from lmpg.runs.lock import OWNER, FolderLock, Held
from tests.support.planted import catches


@pytest.fixture
def locked():
    """Locks that the test takes, released after it."""
    made = []

    def take(path):
        made.append(FolderLock(path))
        return made[-1]

    yield take
    for one in made:
        one.release()


def without_locks(number):
    def flock(descriptor, how):
        raise OSError(number, os.strerror(number))

    return flock


@catches("a deleted .lock lets a second run into the folder")
def test_a_deleted_lock_file_lets_nobody_in(tmp_path, locked):
    locked(tmp_path)
    (tmp_path / ".lock").unlink()
    with pytest.raises(Held):
        locked(tmp_path)


def test_a_released_folder_can_be_held_again(tmp_path, locked):
    FolderLock(tmp_path).release()
    locked(tmp_path)


UNSUPPORTED = ("ENOLCK", "EOPNOTSUPP", "EINVAL", "ENOSYS", "EBADF", "EIO")


@catches("a file system without locks called in use for ever")
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_where_nothing_can_be_locked_a_file_names_the_owner(tmp_path, locked, monkeypatch, name):
    monkeypatch.setattr(fcntl, "flock", without_locks(getattr(errno, name)))
    first = locked(tmp_path)
    assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()
    first.release()
    first._descriptors, first._here = [], os.open(tmp_path, os.O_RDONLY)
    assert not (tmp_path / OWNER).exists()
    locked(tmp_path)


def test_where_folders_cannot_be_locked_the_file_is(tmp_path, locked, monkeypatch):
    flock = fcntl.flock

    def files_only(descriptor, how):
        if os.fstat(descriptor).st_mode & 0o040000:
            raise OSError(errno.EBADF, "as on NFS")
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", files_only)
    locked(tmp_path)
    assert not (tmp_path / OWNER).exists()
    with pytest.raises(Held):
        locked(tmp_path)


def test_an_owner_that_lives_keeps_its_folder_and_a_dead_one_loses_it(
    tmp_path, locked, monkeypatch
):
    monkeypatch.setattr(fcntl, "flock", without_locks(errno.ENOLCK))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / OWNER).write_text(json.dumps(lock._identity(other.pid)))
        with pytest.raises(Held, match=f"by process {other.pid}, as .* says"):
            locked(tmp_path)
        other.kill()
    locked(tmp_path)


def test_an_owner_elsewhere_is_believed_and_the_way_out_named(tmp_path, locked, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", without_locks(errno.ENOLCK))
    (tmp_path / OWNER).write_text(json.dumps({"host": "elsewhere", "process": 1, "started": 2}))
    with pytest.raises(Held, match=r"on elsewhere.*delete that file if the process has ended"):
        locked(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 3}', '{"host": "HERE", "process": "x"}'])
def test_an_owner_file_cut_short_counts_as_nobodys(tmp_path, locked, monkeypatch, text):
    monkeypatch.setattr(fcntl, "flock", without_locks(errno.ENOLCK))
    (tmp_path / OWNER).write_text(text.replace("HERE", socket.gethostname()))
    locked(tmp_path)


def test_a_number_of_a_process_that_was_used_again_is_not_its_owner(tmp_path, locked, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", without_locks(errno.ENOLCK))
    stale = {**lock._identity(os.getppid()), "started": 1}
    (tmp_path / OWNER).write_text(json.dumps(stale))
    locked(tmp_path)


def test_a_held_folder_is_found_where_it_was_moved_to(tmp_path, locked):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    held = locked(here)
    assert held.whereabouts() == here
    here.rename(there)
    assert held.whereabouts() == there
    here.mkdir()  # another one of the same name
    assert held.whereabouts() == there
    (there / ".lock").unlink()
    there.rmdir()
    assert held.whereabouts() is None
