"""Checkpoints: the full state of a run as safetensors and JSON, written whole or not at all.

A checkpoint is written to a temporary folder, flushed to disk and renamed; a manifest with sizes
and SHA-256 sums tells a torn one from a whole one. So the process may die at any instant.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file

from lmpg.runs.files import fsync, settle, sha256, unwritable
from lmpg.runs.saved.checkpoint_parts import METADATA, read_parts, write_parts
from lmpg.runs.saved.state_encoding import Encoder, decoded
from lmpg.runtime.processes import Processes
from lmpg.runtime.sharding import Sharing

T = TypeVar("T")
log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
TENSORS, STATE = "tensors.safetensors", "state.json"
PARTS_FORMAT = 2
"""Of a checkpoint whose tensors lie in parts, each written by the process that had it."""
FILES = {1: {TENSORS, STATE}, PARTS_FORMAT: {METADATA, STATE}}
"""What a manifest lists at least, by its format."""
DIVERGED = "diverged_"
_TEMPORARY = ".tmp-"


def save(folder: Path, step: int, state: Any, keep: int) -> Path:
    """Write `state` as folder/step_N and delete all but the newest `keep` checkpoints.

    `state` is a nested dict or list whose leaves are tensors, numpy arrays or JSON values; dtypes,
    floats (NaN and inf too) and integer keys come back exactly. Checkpoints of later steps, left
    by a run that was resumed from an earlier one, are deleted as well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder, _TEMPORARY)  # makes room
    target = folder / f"step_{step}"
    if not _is_whole(target):  # a whole one of this step holds this very state
        _write(folder, target, step, state)
    _keep(folder, step, keep)
    return target


def save_parts(folder: Path, step: int, state: Any, keep: int, processes: Processes) -> None:
    """The same by all processes together, of a state whose tensors are shared out over them."""
    target = folder / f"step_{step}"
    temporary = folder / f"{_TEMPORARY}{target.name}"

    def begin() -> bool:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder, _TEMPORARY)
        if _is_whole(target):
            return False
        temporary.mkdir()
        return True

    def end() -> None:
        (temporary / STATE).write_text(json.dumps(tree, allow_nan=False), encoding="utf-8")
        _seal(temporary, step, {**dict(of_all), STATE: _listed(temporary / STATE)}, PARTS_FORMAT)
        _put_in_place(folder, temporary, target)

    if _by_main(begin, processes):
        encoder = Encoder()
        tree = encoder.encode(state, "state")
        written = write_parts(temporary, encoder.tensors, processes)
        listed = [(name, _listed(temporary / name)) for name in written]
        of_all = processes.gather_list(listed)
        _by_main(end, processes)
    _by_main(lambda: _keep(folder, step, keep), processes)


def _by_main(action: Callable[[], T], processes: Processes) -> T:
    """What it gives to the main process, on every rank; OSError on all where it cannot write."""
    found: list[T] = []
    found, problem = processes.on_main(lambda: (found, unwritable(lambda: found.append(action()))))
    if problem is not None:
        raise OSError(problem)
    return found[0]


def _keep(folder: Path, step: int, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints up to a step."""
    steps = _steps(folder)
    earlier = [s for s in steps if s <= step]
    for unwanted in [*(s for s in steps if s > step), *earlier[keep:]]:
        _remove(folder / f"step_{unwanted}")
    _sweep(folder, DIVERGED)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what killed processes have left there."""
    for old in _steps(folder)[keep:]:
        _remove(folder / f"step_{old}")
    _sweep(folder, _TEMPORARY)


def whole(folder: Path, sharing: Sharing | None = None) -> Iterator[tuple[int, Any]]:
    """Steps and states of the whole checkpoints, newest first; torn ones are skipped with a
    warning. sharing: how tensors that were shared out are to be, else they are whole."""
    for step in _steps(folder):
        path = folder / f"step_{step}"
        try:
            parts = _verify(path)["format"] == PARTS_FORMAT
            tree = json.loads((path / STATE).read_bytes())
            tensors = read_parts(path, tree, sharing) if parts else load_file(path / TENSORS)
            state = decoded(tree, tensors)
        except Exception as error:  # whatever is wrong with one, the one before may be right
            log.warning("checkpoint %s is not whole (%s); trying the one before", path, error)
            continue
        yield step, state


def newest(folder: Path) -> tuple[int, Any] | None:
    """Step and state of the newest whole checkpoint, None where there is none."""
    return next(whole(folder), None)


def set_aside(folder: Path, step: int) -> None:
    """Take the checkpoint of a step, if there is one, from those that a run is resumed from: what
    it holds cannot learn. It stays under another name until the next one is saved."""
    path = folder / f"step_{step}"
    if path.exists():
        shutil.rmtree(folder / f"{DIVERGED}{path.name}", ignore_errors=True)
        path.rename(folder / f"{DIVERGED}{path.name}")


def newest_step(folder: Path) -> int | None:
    """Step of the newest whole checkpoint, without reading its state; None when there is none."""
    return next((step for step in _steps(folder) if _is_whole(folder / f"step_{step}")), None)


def _write(folder: Path, target: Path, step: int, state: Any) -> None:
    temporary = folder / f"{_TEMPORARY}{target.name}-{os.getpid()}"
    try:
        _fill(temporary, step, state)
    except BaseException:  # a half would take room of a disk that is full
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _put_in_place(folder, temporary, target)


def _put_in_place(folder: Path, temporary: Path, target: Path) -> None:
    if target.exists():  # torn, or it would not be written again
        _remove(target)
    temporary.rename(target)
    fsync(folder)
    fsync(folder.parent)


def _fill(temporary: Path, step: int, state: Any) -> None:
    temporary.mkdir()
    encoder = Encoder()
    tree = encoder.encode(state, "state")
    save_file(encoder.tensors, temporary / TENSORS)
    (temporary / STATE).write_text(json.dumps(tree, allow_nan=False), encoding="utf-8")
    _seal(temporary, step, {path.name: _listed(path) for path in sorted(temporary.iterdir())})


def _listed(path: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def _seal(temporary: Path, step: int, files: dict[str, Any], form: int = 1) -> None:
    manifest = {"format": form, "step": step, "files": files}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    settle(temporary)


def _sweep(folder: Path, prefix: str) -> None:
    for stale in folder.glob(f"{prefix}*"):
        shutil.rmtree(stale)


def _remove(path: Path) -> None:
    """Delete a checkpoint under another name first, so that no half of it is ever read."""
    doomed = path.with_name(f"{_TEMPORARY}old-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _steps(folder: Path) -> list[int]:
    """Steps that have a folder, newest first."""
    found = [re.fullmatch(r"step_(\d+)", path.name) for path in folder.glob("step_*")]
    return sorted((int(match[1]) for match in found if match), reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        _verify(path)
    except Exception:
        return False
    return True


def _verify(path: Path) -> dict[str, Any]:
    """The manifest; raises if a file is missing, has another size, or other bytes than it says."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    if manifest["format"] not in FILES:
        known = " and ".join(map(str, FILES))
        raise ValueError(f"format {manifest['format']}, this version reads format {known}")
    if missing := FILES[manifest["format"]] - manifest["files"].keys():
        raise ValueError(f"{MANIFEST} does not list {min(missing)}")
    for name, expected in manifest["files"].items():
        size = (path / name).stat().st_size
        if size != expected["size"]:
            raise ValueError(f"{name} has {size} bytes, expected {expected['size']}")
        if sha256(path / name) != expected["sha256"]:
            raise ValueError(f"{name} has another checksum than when it was written")
    return manifest
