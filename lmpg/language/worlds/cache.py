"""Keeps what a built-in world makes: folders in the user's cache, each named by its settings.

A folder is written under a temporary name and renamed. A manifest of checksums shows whether it is
whole; if not, it is made again. A lock makes other processes wait instead of making it twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmpg.runs.files import fsync, settle, sha256
from lmpg.runs.lock import Held, locked
from lmpg.runtime.machine import one_thread
from lmpg.settings.section import UserError

MANIFEST = "manifest.json"
FACTS = "facts.json"
asked_for: list[str] = []
"""Names of the folders that this process was given, in turn."""


def cached(name: str, settings: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills from `settings`, from the cache where it is there already.

    `settings` is JSON and holds everything that the result depends on, such as the version of the
    code and the folders that it is made from. `make` has one thread, on any machine: with two its
    sums have other last bits, so the world would be another one.
    """
    text = json.dumps({**settings, "threads": 1}, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = cache_folder() / f"{name}-{key}"
    asked_for.append(folder.name)
    if is_whole(folder):
        return folder
    with _lock(folder):
        if not is_whole(folder):
            print(f"making {name} once, kept in {folder.parent}", flush=True)
            _fill(folder, make, text)
    return folder


def cache_folder() -> Path:
    """$LMPG_CACHE, else `lmpg` in the user's cache folder."""
    own = os.environ.get("LMPG_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or f"{home}/lmpg").expanduser().resolve()


def is_whole(folder: Path) -> bool:
    """Whether every file is there as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return all(sha256(folder / name) == digest for name, digest in manifest["files"].items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write numbers about a model beside it, such as its held-out loss."""
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def read_facts(folder: Path) -> dict[str, Any]:
    """The numbers that `write_facts` wrote."""
    return json.loads((folder / FACTS).read_text(encoding="utf-8"))


def _fill(folder: Path, make: Callable[[Path], None], settings: str) -> None:
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed: we hold the lock
    temporary.mkdir()
    with one_thread():
        make(temporary)
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    digests = {str(path.relative_to(temporary)): sha256(path) for path in files}
    manifest = {"settings": json.loads(settings), "files": digests}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    settle(temporary)
    shutil.rmtree(folder, ignore_errors=True)  # torn, or it would not be made again
    temporary.rename(folder)
    fsync(folder.parent)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock the folder; the system releases the lock even of a process that was killed."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f".{folder.name}.lock").open("a")
    except OSError as error:
        raise UserError(
            f"the cache {folder.parent} cannot be written ({error.strerror}); set LMPG_CACHE to a "
            "folder that you may write to"
        ) from error
    with file:
        try:
            locked(file.fileno())  # where a file system has no locks, it may be made twice
        except Held:
            print(f"waiting for another process that is making {folder.name}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
