"""Runs one after another in several processes, which are forks of the test's own: they have
imported everything already, and are told what torchrun would tell them."""

import multiprocessing
import os
import socket
import sys
from pathlib import Path
from typing import Any

from accelerate.state import PartialState

from lmpg.runtime.processes import Processes, close_process_group
from tests.support.programs import run_here

Todo = list[tuple[str, dict[str, Any]]]


def forked(count: int, todo: Todo, log: Path, machines: int = 1) -> str:
    """The runs over `count` processes; returns what they print, and raises if one of them fails.
    machines: that the processes believe themselves on, with one disk."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    started = [_as_by_torchrun(rank, count, port, machines) for rank in range(count)]
    ranks = [fork.Process(target=_rank, args=(values, todo, log)) for values in started]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(280)
        if rank.is_alive():
            rank.kill()
    said = "".join(log.with_suffix(f".{rank}").read_text() for rank in range(count))
    assert all(rank.exitcode == 0 for rank in ranks), said
    return said


def _as_by_torchrun(rank: int, count: int, port: int, machines: int) -> dict[str, str]:
    """The environment that torchrun starts a process with."""
    here = count // machines
    values = {"RANK": rank, "WORLD_SIZE": count, "GROUP_RANK": rank // here}
    values |= {"LOCAL_RANK": rank % here, "LOCAL_WORLD_SIZE": here, "GROUP_WORLD_SIZE": machines}
    values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return {name: str(value) for name, value in values.items()}


def _rank(values: dict[str, str], todo: Todo, log: Path) -> None:
    """One of the processes."""
    os.environ.update(values)
    PartialState._reset_state()
    Processes._watch = None
    with log.with_suffix(f".{values['RANK']}").open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        for algorithm, flags in todo:
            run_here(algorithm, flags)
        close_process_group()
