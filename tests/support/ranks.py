"""Several processes of this one, which exchange tensors: `forked(2, function)`, and such that do
not see one another's disks: `on_machines(folder, function)`."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate import PartialState

from lmpg.runtime.processes import Processes


def forked(
    count: int, function: Callable[[int], Any], seconds: float = 60, lost: int | None = None
) -> list[Any]:
    """What `function(rank)` returns in each of `count` processes of one group over gloo: plain
    values, as tensors would lie in memory that goes with their process. lost: one that does not
    come back, and of which nothing is asked."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    members = [
        context.Process(
            target=_member, args=(rank, count, port, function, pipes[rank][1], lost is not None)
        )
        for rank in range(count)
    ]
    for member in members:
        member.start()
    found = []
    try:
        for rank, (receiver, _) in enumerate(pipes):
            if rank == lost:
                found.append(None)
                continue
            assert receiver.poll(seconds), "a process does not answer"
            found.append(receiver.recv())
    finally:
        for rank, member in enumerate(members):
            member.join(0 if rank == lost else 1)
            member.kill()
    failed = [x for x in found if isinstance(x, BaseException)]
    assert not failed, failed
    return found


def on_machines(place: Path, function: Callable[[Processes], Any], seconds: float = 120) -> list:
    """What `function` returns in each of two processes, each on a machine and in a folder of its
    own: place/0 and place/1."""

    def member(rank: int) -> Any:
        os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", GROUP_WORLD_SIZE="2")
        os.environ["LMPG_CACHE"] = str(place / str(rank) / "cache")
        PartialState._reset_state()  # this process was alone before it was forked
        os.chdir(place / str(rank))
        return function(Processes())

    for rank in (0, 1):
        (place / str(rank)).mkdir(exist_ok=True)
    return forked(2, member, seconds)


def _member(
    rank: int, count: int, port: int, function: Callable[[int], Any], pipe: Any, lost: bool
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
    )
    try:
        dist.init_process_group("gloo")
        found = function(rank)
        if not lost:
            dist.barrier()
            dist.destroy_process_group()
    except BaseException as error:
        traceback.print_exc()
        found = RuntimeError(f"rank {rank}: {error!r}")
    pipe.send(found)
    pipe.close()
    os._exit(0)
