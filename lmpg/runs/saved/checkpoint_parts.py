"""Checkpoints of a state whose tensors are shared out over processes: each writes its parts.

`torch.distributed.checkpoint` writes and reads the parts, so that another number of processes, or
one alone, can go on from them. Folder and manifest are as `lmpg.runs.checkpoint` has them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmpg.runtime.parts import is_shared_out
from lmpg.runtime.processes import Processes
from lmpg.runtime.sharding import Sharing

METADATA = ".metadata"
"""What torch calls its list of all parts."""


def write_parts(folder: Path, tensors: dict[str, Tensor], processes: Processes) -> list[str]:
    """Write this process's parts of `tensors` into `folder`, in step with all others; returns the
    names of the files that it wrote. OSError on every process where one of them cannot write."""
    from torch.distributed import checkpoint as dcp

    writer = dcp.FileSystemWriter(folder, sync_files=False)
    with _failing_alike(), _quiet():
        dcp.save(dict(tensors), storage_writer=writer)
    names = [path.name for path in folder.glob(f"__{processes.rank}_*.distcp")]
    return [*names, METADATA] if processes.is_main else names


def read_parts(folder: Path, tree: Any, sharing: Sharing | None) -> dict[str, Tensor]:
    """The tensors written into `folder` by name. Those that `tree`, the encoded state, says were
    shared out are so again as `sharing` has it, and this process reads its parts; or all whole."""
    from torch.distributed import checkpoint as dcp

    reader = dcp.FileSystemReader(folder)
    known = reader.read_metadata().state_dict_metadata
    parts = set(_named_parts(tree))
    found: dict[str, Any] = {}
    entry: Any
    for name, entry in known.items():
        room = torch.empty if sharing is None or name not in parts else sharing.empty
        found[name] = room(entry.size, dtype=entry.properties.dtype)
    with _failing_alike(), _quiet():
        dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def has_parts(state: Any) -> bool:
    """Whether any tensor of a nested state is shared out."""
    if isinstance(state, dict):
        return any(map(has_parts, state.values()))
    if isinstance(state, list | tuple):
        return any(map(has_parts, state))
    return isinstance(state, Tensor) and is_shared_out(state)


def _named_parts(tree: Any) -> Iterator[str]:
    """The names of all tensors of an encoded state that were shared out."""
    if isinstance(tree, list):
        for item in tree:
            yield from _named_parts(item)
    elif isinstance(tree, dict):
        if "__parts__" in tree:
            yield tree["__parts__"]
        for item in tree.values():
            yield from _named_parts(item)


@contextmanager
def _failing_alike() -> Iterator[None]:
    """What torch raises on every process where one has failed becomes that one's own error."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"{cause} (rank {rank})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """torch tells that a single process reads, which is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
