"""Locks on folders, held as long as the process lives; the system lets go even after kill -9."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

LOCK = ".lock"
OWNER = ".owner"
HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}  # any other error: no locks here
_held: dict[tuple[int, int], FolderLock] = {}


class Held(Exception):
    """Another process that lives holds the folder; the text says which, where that is known."""


class FolderLock:
    """A hold on the folder at `path`, whatever it is called later.

    Both the folder itself and a file in it are locked: the folder, as the file may be deleted; the
    file, as network file systems lock no folders. Where the file system has no locks at all, the
    file .owner names machine and process, and is disregarded once that process has died.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.named = path, path.absolute()
        self._descriptors: list[int] = []
        self._owner: Path | None = None
        self._here = os.open(path, os.O_RDONLY)
        try:
            self._take()
        except BaseException:
            self.release()
            raise

    def is_of(self, path: Path) -> bool:
        """Whether it was taken of this path (the working directory may have been moved since)."""
        return self.path == path or self.named == path.absolute()

    def release(self) -> None:
        """Let go, so that another process can hold the folder."""
        for descriptor in [*self._descriptors, self._here]:
            os.close(descriptor)
        self._descriptors = []
        if self._owner is not None:
            self._owner.unlink(missing_ok=True)

    def whereabouts(self) -> Path | None:
        """Where the folder is now: `path`, another place if it was moved, None if deleted."""
        found = os.fstat(self._here)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.path), found):
                return self.path
        with contextlib.suppress(OSError):
            moved = Path(os.readlink(f"/proc/self/fd/{self._here}"))
            if os.path.samestat(os.stat(moved), found):
                return moved
        return None

    def _take(self) -> None:
        whole = locked(self._here)
        file = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        self._descriptors.append(file)
        if not (locked(file) or whole):
            self._owner = _owned(self.path / OWNER)


def hold(path: Path) -> None:
    """Lock the folder for this process, once; raises Held where another one has it."""
    found = os.stat(path)
    key = (found.st_dev, found.st_ino)
    if key not in _held:
        _held[key] = FolderLock(path)


def is_held(path: Path) -> bool:
    """Whether a process that lives holds the folder; nothing is written for the question."""
    try:
        _refuse_the_living(path / OWNER)
        descriptor = os.open(path / LOCK, os.O_RDONLY)
    except Held:
        return True
    except OSError:
        return False
    try:  # shared and let go at once: a run that begins in this very moment would be refused
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in HELD
    finally:
        os.close(descriptor)
    return False


def lock_of(path: Path) -> FolderLock | None:
    """This process's lock on the folder that it knows as `path`."""
    return next((lock for lock in _held.values() if lock.is_of(path)), None)


def let_go(path: Path) -> None:
    """Release this process's lock on the folder, if there is one."""
    for key, lock in list(_held.items()):
        if lock.is_of(path):
            _held.pop(key).release()


def opened() -> list[Path]:
    """Folders that this process has locked, in the order of locking."""
    return [lock.named for lock in _held.values()]


def locked(descriptor: int) -> bool:
    """Whether the system has given the lock; False where it has none, Held where it is taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            raise Held("") from error
        return False
    return True


def _owned(path: Path) -> Path:
    """Write who this process is, unless another one that lives is named there already."""
    me = _identity(os.getpid())
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            _refuse_the_living(path)
            path.unlink(missing_ok=True)
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(me, file)
        return path


def _refuse_the_living(path: Path) -> None:
    """Held if the file names a process that lives, or that no one here can tell about."""
    try:
        named = json.loads(path.read_text(encoding="utf-8"))
        host, process = named["host"], int(named["process"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # torn: its writer died
    if host != socket.gethostname():
        raise Held(
            f"by process {process} on {host}, as {path} says (this file system has no locks); "
            "delete that file if the process has ended"
        )
    if process != os.getpid() and _identity(process) == named:
        raise Held(f"by process {process}, as {path} says (this file system has no locks)")


def _identity(process: int) -> dict[str, Any]:
    """Machine and number of a process, and when it started, as numbers are used again."""
    started: int | None = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        started = int(text.rpartition(")")[2].split()[19])
    if started is None:
        with contextlib.suppress(OSError):
            os.kill(process, 0)
            started = 0
    return {"host": socket.gethostname(), "process": process, "started": started}
