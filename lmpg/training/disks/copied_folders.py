"""Files of the main process on machines that do not see its disk: worlds, objects, stages' models.

A run's folder lies where the main process is, and nobody else reads or writes it. What all
processes read is copied to every machine where it is not the same already.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lmpg.runs.files import TEMPORARY, UNWRITABLE, sha256
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError

PIECE = 1 << 26
"""Bytes that are sent at once."""

Listing = list[tuple[str, int, str]]


def copied(folder: Path, processes: Processes) -> None:
    """Let `folder` hold on every machine what it holds for the main process.

    It may lie elsewhere on each. UserError on every rank where a machine cannot write it.
    """
    if processes.machines == 1:
        return
    files = processes.on_main(lambda: listing(folder))
    lacks = processes.is_first_here and not processes.is_main and listing(folder) != files
    if not any(processes.gather_list([lacks])):
        return
    new = folder.with_name(f"{folder.name}{TEMPORARY}-copy")
    shutil.rmtree(new, ignore_errors=True)
    problem = None
    for name, size, _ in files:
        for start in range(0, max(size, 1), PIECE):
            piece = torch.empty(min(PIECE, size - start), dtype=torch.uint8)
            if processes.is_main:
                _read(folder / name, start, piece)
            piece = processes.from_main(piece)
            if lacks and problem is None:
                problem = _problem_of(partial(_append, new / name, piece))
    if lacks and problem is None:
        problem = _problem_of(partial(_put, new, folder))
    shutil.rmtree(new, ignore_errors=True)
    if found := next(filter(None, processes.gather_list([problem])), None):
        raise UserError(found)


def listing(folder: Path) -> Listing:
    """Name, size and SHA-256 of every file in a folder; [] where there is none."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.append((str(path.relative_to(folder)), path.stat().st_size, sha256(path)))
    return found


def _read(path: Path, start: int, piece: Tensor) -> None:
    """The bytes of a file from `start` on, as many as there is room for."""
    with path.open("rb") as file:
        file.seek(start)
        file.readinto(piece.numpy().data)


def _append(path: Path, piece: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(piece.numpy().data)


def _put(new: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)


def _problem_of(action: Callable[[], object]) -> str | None:
    """What keeps this machine from writing, in words; None where it could."""
    try:
        action()
    except UNWRITABLE as error:
        return (
            f"{socket.gethostname()} cannot take over what the main process has: {error}; make "
            "room there, or let all machines see one disk"
        )
    return None
