"""The processes of one run: rank and device, and the few exchanges that training needs.

Every rank holds the whole rollout (a few MB of numbers) and computes the same credit; only
sampling, scoring and the model's forward and backward are shared out. Gradients are summed once
per optimizer step: weights count the global minibatch, so the sum is the gradient.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import psutil
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch import Tensor

from lmpg.runtime.machine import OWN_THREADS, SMALL_MODEL, limit_threads
from lmpg.runtime.sharding import Sharing
from lmpg.runtime.waiting import Waiting
from lmpg.settings.section import UserError

T = TypeVar("T")


class Processes:
    """Rank, number and device of this process, from accelerate's launcher or torchrun.

    cpu: use the CPU even if the machine has a GPU. num_threads: CPU threads of each process, the
    same for the whole run, as results depend on them; 0 until they are fixed. why_so_many: the
    reason, for the log. sharing: how weights are shared out; None where each process holds all.
    """

    sharing: Sharing | None = None
    num_threads = 0
    why_so_many = ""
    _waiting: ClassVar[Waiting | None] = None  # a pipeline's stages count their meetings on

    def __init__(self, cpu: bool = False) -> None:
        self._state = PartialState(cpu=cpu or on_cpu())
        self.rank = self._state.process_index
        self.count = self._state.num_processes
        self.device = self._state.device
        self.is_main = self.rank == 0

    @property
    def asked_for(self) -> int:
        """How many processes the launcher was asked for, as far as its command line tells.

        `accelerate launch --cpu --num_processes 2` silently starts one (accelerate 1.15).
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > self.count:
            return int(os.environ["WORLD_SIZE"])
        found = re.search(r"--num[_-]processes[ =](\d+)", accelerate_launcher())
        return int(found[1]) if found else self.count

    def announce(self) -> None:
        """Say how many processes there are, and warn where more were asked for. A launcher that is
        ended asks this process to stop."""
        if accelerate_launcher():
            end_with_parent()
        if not self.is_main:
            return
        noun = "processes" if self.count > 1 else "process"
        print(f"{self.count} {noun} on {self.device.type}", flush=True)
        if self.asked_for > self.count:
            print(
                f"warning: {self.asked_for} processes were asked for, but the launcher started "
                f"{self.count}; on CPU use torchrun --nproc_per_node {self.asked_for}",
                flush=True,
            )

    def fix_threads(self, count: int, why: str) -> None:
        """Compute with `count` CPU threads from now on; the main process decides for all."""
        self.num_threads, self.why_so_many = self.gather_list([(count, why)])[0]
        limit_threads(self.num_threads)

    def suit_threads(self, num_weights: int) -> None:
        """Fix the CPU threads by the size of what is computed, unless they are fixed already."""
        if self.num_threads:
            return
        if num_weights < SMALL_MODEL:
            self.fix_threads(1, "small models gain little by more")
        else:
            self.fix_threads(OWN_THREADS, "torch's choice")

    def on_main(self, function: Callable[[], T]) -> T:
        """Run `function` in the main process alone; every rank gets its result or UserError."""
        result: Any = None
        problem = None
        if self.is_main:
            try:
                result = function()
            except UserError as error:
                problem = str(error)
        result, problem = self.gather_list([(result, problem)])[0]
        if problem is not None:
            raise UserError(problem)
        return result

    def share(self, items: list[T]) -> list[T]:
        """This rank's contiguous part of `items`."""
        return [items[i] for i in self.share_of(len(items))]

    def share_of(self, count: int) -> range:
        """Indices of this rank's contiguous part of `count` items; parts differ by one at most."""
        return range(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def gather_list(self, items: list[T]) -> list[T]:
        """All ranks' items in rank order, on every rank."""
        if self.count == 1:
            return items
        with self._meeting():
            return gather_object(items)

    def in_step(self, parts: list[T], nothing: T) -> list[T]:
        """What this rank computes with gradients, one part after the other; where weights are
        shared out followed by `nothing`, until all ranks compute as often as one another."""
        if self.sharing is None:
            return parts
        most = max(self.gather_list([len(parts)]))
        return parts + [nothing] * (most - len(parts))

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """A block that the ranks of a machine come to one after the other where weights are shared
        out, so that the memory holds one whole copy of them at a time. No meeting in it."""
        own, turns = 0, 0
        if self.sharing is not None:
            own, count = local_rank_and_count()
            turns = max(self.gather_list([count]))
        for _ in range(own):
            self.wait()
        try:
            yield
        finally:
            for _ in range(own, turns):
                self.wait()

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks; one without a gradient counts as 0. Those
        of weights that are shared out are summed already."""
        if self.count == 1 or self.sharing is not None:
            return
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.reshape(-1) for p in parameters])  # type: ignore[union-attr]
        with self._meeting():
            dist.all_reduce(flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad.copy_(part.view_as(p))  # type: ignore[union-attr]

    def sum(self, x: Tensor) -> Tensor:
        """`x` summed over ranks."""
        if self.count > 1:
            with self._meeting():
                dist.all_reduce(x)
        return x

    def wait(self) -> None:
        """Wait until every rank has come here."""
        if self.count > 1:
            with self._meeting():
                self._state.wait_for_everyone()

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """All processes come to the block; says which one is waited for long. Until then, they help
        one another to gather weights."""
        if Processes._waiting is None:
            board = dist.distributed_c10d._get_default_store()
            Processes._waiting = Waiting(self.rank, self.count, board)
            Processes._waiting.start()
        with Processes._waiting.meeting():
            if self.sharing is not None:
                self.sharing.company.come_to()
            yield


def close_process_group() -> None:
    """Leave torch.distributed in order, where a launcher started several processes; torch warns at
    exit otherwise."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class SingleProcess(Processes):
    """This process alone, on the CPU, however many there are: for work that one of them does."""

    def __init__(self) -> None:
        self.rank, self.count, self.is_main = 0, 1, True
        self.device = torch.device("cpu")

    def wait(self) -> None:
        """There is nobody to wait for."""


def local_rank_and_count() -> tuple[int, int]:
    """This process's place among those of its machine, and how many these are."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def accelerate_launcher() -> str:
    """The command line of the parent where that is accelerate's launcher, else ""."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return ""
    return " ".join(words) if any("accelerate" in word for word in words) else ""


def end_with_parent() -> None:
    """Let this process get SIGTERM when its parent ends (Linux): accelerate's launcher leaves a
    single process behind when it is ended."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


def on_cpu() -> bool:
    """Whether accelerate must be told to stay on the CPU: its launcher was given --cpu, or there
    are several processes and no accelerator, where it would start as many separate runs."""
    several = "LOCAL_RANK" in os.environ
    return parse_flag_from_env("ACCELERATE_USE_CPU") or (
        several and not torch.accelerator.is_available()
    )
