"""Files of a run's folder: written whole or not at all, for all whom the umask lets read them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError

TEMPORARY = ".tmp"
UNWRITABLE = (OSError, SafetensorError)
"""What a full disk, or one that fails, raises."""


def fsync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one instant; what UTF-8 cannot hold (half an emoji) becomes ?."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a half would take room of a disk that is full
        temporary.unlink(missing_ok=True)
        raise
    temporary.rename(path)
    fsync(path.parent)


def replace_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a folder under another name, then put it in the place of `path`."""
    temporary, old = (path.with_name(f"{path.name}{end}{TEMPORARY}") for end in ("", ".old"))
    for stale in (temporary, old):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        temporary.mkdir()
        fill(temporary)
        settle(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    fsync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def unwritable(action: Callable[[], object]) -> str | None:
    """Does it; returns why it cannot be written (a full disk), None where it was."""
    try:
        action()
    except UNWRITABLE as error:
        return str(error)
    return None


def settle(folder: Path) -> None:
    """Give the folder's files the permissions that the umask leaves to new files (safetensors lets
    nobody else read its own), and flush all to the disk."""
    mode = folder.stat().st_mode & 0o666
    inside = list(folder.rglob("*"))
    for path in inside:
        if path.is_file():
            path.chmod(mode)
    for path in [*inside, folder]:
        fsync(path)


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Remove what a killed process has left half written of files and folders with these names."""
    for name in names:
        new, old = (folder / f"{name}{end}{TEMPORARY}" for end in ("", ".old"))
        if old.exists() and not (folder / name).exists():  # killed between two renames
            old.rename(folder / name)
        for path in (new, old):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def whole_model(folder: Path) -> Path:
    """Where the whole model lies in a run's final/ or best/: beside an adapter in merged/."""
    merged = folder / "merged"
    return merged if merged.is_dir() else folder
