"""Checkpoints: the full state of a run as safetensors and JSON, written whole or not at all.

A checkpoint is written to a temporary folder, flushed to disk and renamed; a manifest with sizes
and SHA-256 sums tells a torn one from a whole one. So the process may die at any instant.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmpg.runs.files import fsync, settle

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
FILES = {"tensors.safetensors", "state.json"}
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
    steps = _steps(folder)
    earlier = [s for s in steps if s <= step]
    for unwanted in [*(s for s in steps if s > step), *earlier[keep:]]:
        _remove(folder / f"step_{unwanted}")
    _sweep(folder, DIVERGED)
    return target


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what killed processes have left there."""
    for old in _steps(folder)[keep:]:
        _remove(folder / f"step_{old}")
    _sweep(folder, _TEMPORARY)


def whole(folder: Path) -> Iterator[tuple[int, Any]]:
    """Steps and states of the whole checkpoints, newest first; torn ones are skipped with a
    warning."""
    for step in _steps(folder):
        path = folder / f"step_{step}"
        try:
            _verify(path)
            tensors = load_file(path / "tensors.safetensors")
            state = _decode(json.loads((path / "state.json").read_bytes()), tensors)
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


def num_bytes(state: Any) -> int:
    """Bytes that the tensors and arrays of a state take in a checkpoint, where each is once."""
    found: dict[tuple, int] = {}
    waiting = [state]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, np.ndarray):
            found[id(value),] = value.nbytes
        elif isinstance(value, Tensor):
            found[_place(value)] = value.nbytes
    return sum(found.values())


def _place(tensor: Tensor) -> tuple:
    """The same for the same numbers in memory alone, as long as the tensor lives."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device


def _write(folder: Path, target: Path, step: int, state: Any) -> None:
    temporary = folder / f"{_TEMPORARY}{target.name}-{os.getpid()}"
    try:
        _fill(temporary, step, state)
    except BaseException:  # a half would take room of a disk that is full
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if target.exists():  # torn, or it would not be written again
        _remove(target)
    temporary.rename(target)
    fsync(folder)
    fsync(folder.parent)


def _fill(temporary: Path, step: int, state: Any) -> None:
    temporary.mkdir()
    tree, tensors = split(state)
    save_file(tensors, temporary / "tensors.safetensors")
    (temporary / "state.json").write_text(json.dumps(tree, allow_nan=False), encoding="utf-8")
    files = {
        path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(temporary.iterdir())
    }
    manifest = {"format": 1, "step": step, "files": files}
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


def _verify(path: Path) -> None:
    """Raise if a file is missing, has another size, or other bytes than the manifest says."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    if manifest["format"] != 1:
        raise ValueError(f"format {manifest['format']}, this version reads format 1")
    if missing := FILES - manifest["files"].keys():
        raise ValueError(f"{MANIFEST} does not list {min(missing)}")
    for name, expected in manifest["files"].items():
        size = (path / name).stat().st_size
        if size != expected["size"]:
            raise ValueError(f"{name} has {size} bytes, expected {expected['size']}")
        if _sha256(path / name) != expected["sha256"]:
            raise ValueError(f"{name} has another checksum than when it was written")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """A state as JSON and the tensors in it, by the names that the JSON has for them."""
    encoder = _Encoder()
    return encoder.encode(state, "state"), encoder.tensors


def joined(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The state that was `split`."""
    return _decode(tree, tensors)


class _Encoder:
    """Turns a state into JSON, with the tensors put aside under names."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple, str] = {}
        self._storages: set[int] = set()
        self._alive: list[Tensor] = []  # addresses are unique only among living tensors

    def encode(self, value: Any, path: str) -> Any:
        """JSON for `value`; `path` names it in errors."""
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"__float__": repr(float(value))}
        if isinstance(value, Tensor):
            return {"__tensor__": self._put(value)}
        if isinstance(value, np.ndarray):
            return {"__array__": self._put(torch.from_numpy(np.array(value)))}
        if isinstance(value, dict):
            return self._mapping(value, path)
        if isinstance(value, list | tuple):
            items = [self.encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"__tuple__": items}
        raise TypeError(
            f"{path} is a {type(value).__name__}; a checkpoint holds tensors, numpy arrays, "
            "numbers, strings, None, and lists or dicts of them"
        )

    def _mapping(self, value: dict, path: str) -> Any:
        pairs = [(key, self.encode(item, f"{path}.{key}")) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("__") for key, _ in pairs):
            return dict(pairs)
        return {"__dict__": [[self.encode(key, f"{path} (key)"), item] for key, item in pairs]}

    def _put(self, tensor: Tensor) -> str:
        """A name for the tensor; one that is already there under another path is not repeated."""
        tensor = tensor.detach()
        place = _place(tensor)
        if tensor.numel() and place in self._names:
            return self._names[place]
        name = f"t{len(self.tensors)}"
        self._alive.append(tensor)
        self._names[place] = name
        copy = tensor.cpu().contiguous()
        storage = copy.untyped_storage().data_ptr()
        if storage in self._storages:  # safetensors refuses views that overlap
            copy = copy.clone()
        self._storages.add(storage)
        self.tensors[name] = copy
        return name


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__float__" in value:
        return float(value["__float__"])
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__array__" in value:
        return tensors[value["__array__"]].numpy()
    if "__tuple__" in value:
        return tuple(_decode(item, tensors) for item in value["__tuple__"])
    if "__dict__" in value:
        return {_decode(k, tensors): _decode(v, tensors) for k, v in value["__dict__"]}
    return {key: _decode(item, tensors) for key, item in value.items()}
