"""The processes of one run: rank and device, and the few exchanges that training needs.

Every rank holds the whole rollout (a few MB of numbers) and computes the same credit; only
sampling, scoring and the model's forward and backward are shared out. Gradients are summed once
per optimizer step: weights count the global minibatch, so the sum is the gradient.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from lmpg.runtime import launcher
from lmpg.runtime.gradient_sum import GradientSum
from lmpg.runtime.launch import OF_MPI, Launch, is_on, launch_of, size
from lmpg.runtime.machine import OWN_THREADS, SMALL_MODEL, limit_threads
from lmpg.runtime.sharding import Sharing
from lmpg.runtime.watch import Watch
from lmpg.settings.section import RunStopped, UserError

T = TypeVar("T")

LONGEST = timedelta(hours=2)
"""After which torch gives an exchange up, which cannot tell what works from what hangs."""
HERE = (
    *("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS"),
    *("OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
)
"""How many of the processes are on this machine, by torch's launcher or one of MPI's."""


class Processes:
    """Rank, number and device of this process, from accelerate's launcher or torchrun.

    cpu: use the CPU even if the machine has a GPU. num_threads: CPU threads of each process, the
    same for the whole run, as results depend on them; 0 until they are fixed. why_so_many: the
    reason, for the log. machines: how many there are; is_first_here: of the processes of its own.
    sharing: how weights are shared out; None where each process holds all.
    """

    sharing: Sharing | None = None
    num_threads = 0
    _sum: tuple[tuple[int, ...], GradientSum] | None = None
    why_so_many = ""
    _watch: ClassVar[Watch | None] = None  # a pipeline's stages count their meetings on

    def __init__(self, cpu: bool = False) -> None:
        self.launch = launch_of(os.environ, launcher.told())
        if is_on(os.environ, "ACCELERATE_USE_FSDP"):  # or transformers would leave weights empty
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        self._state = PartialState(cpu=cpu or self.launch.cpu or on_cpu(), timeout=LONGEST)
        self.rank = self._state.process_index
        self.count = self._state.num_processes
        self.device = self._state.device
        self.is_main = self.rank == 0
        self.machines = num_machines()
        self.is_first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        self.launch.refuse_fewer(self.count, self.machines)
        if self.count > 1 and Processes._watch is None:
            board = dist.distributed_c10d._get_default_store()
            Processes._watch = Watch(self.rank, self.count, board, os.environ["MASTER_ADDR"])
            Processes._watch.start()
            atexit.register(Processes._watch.finish)

    def watch(self, timeout: float, advice: str) -> None:
        """Give another process up after `timeout` seconds without a sign or behind the others;
        advice: how to go on with the run then."""
        if Processes._watch is not None:
            Processes._watch.timeout, Processes._watch.advice = timeout, advice

    def in_pace(self) -> AbstractContextManager[None]:
        """A block in which every process is to come to each exchange in time; else it may take
        long over what it does, such as loading a model."""
        return Processes._watch.busy(False) if Processes._watch else nullcontext()

    def announce(self) -> None:
        """Say how many processes there are. A launcher that is ended asks this process to stop."""
        if launcher.told() or "LOCAL_RANK" in os.environ:
            launcher.end_with_parent()
        if self.is_main:
            noun = "processes" if self.count > 1 else "process"
            print(f"{self.count} {noun} on {self.device.type}", flush=True)

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
                with Processes._watch.busy() if Processes._watch else nullcontext():
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

    @property
    def shards(self) -> int:
        """How many ranks hold a copy of all weights together; 1 where each has one."""
        return 1 if self.sharing is None else self.sharing.shards

    @contextmanager
    def stopped_alike(self) -> Iterator[None]:
        """A block that all ranks come to, which RunStopped leaves in all of them if it does in
        one: the others would wait for it at their next meeting."""
        try:
            yield
        except RunStopped as error:
            self.gather_list([str(error)])
            raise
        said: list[str | None] = self.gather_list([None])
        if found := next(filter(None, said), None):
            raise RunStopped(found)

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

    @contextmanager
    def last_backward(self, parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
        """The last backward pass before `sum_gradients` of these: it may send them as they come."""
        if self.count == 1 or self.sharing is not None:
            yield
            return
        assert Processes._watch is not None
        with Processes._watch.exchange(), self._sum_of(parameters).overlapped():
            yield

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks; one without a gradient counts as 0. Those
        of weights that are shared out are summed already."""
        if self.count > 1 and self.sharing is None:
            with self._meeting():
                self._sum_of(parameters).finish()

    def _sum_of(self, parameters: Sequence[torch.nn.Parameter]) -> GradientSum:
        """The sum of these parameters' gradients, the same for the same ones."""
        key = tuple(map(id, parameters))
        if self._sum is None or self._sum[0] != key:
            self._sum = key, GradientSum(parameters)
        return self._sum[1]

    def sum(self, x: Tensor) -> Tensor:
        """`x` summed over ranks."""
        if self.count > 1:
            with self._meeting():
                dist.all_reduce(x)
        return x

    def from_main(self, x: Tensor) -> Tensor:
        """The main process's `x`, on the CPU; elsewhere `x` says its shape and type."""
        if self.count == 1:
            return x
        moved = x.to(self.device).contiguous()
        with self._meeting():  # as bytes: a backend need not know every type
            dist.broadcast(moved.reshape(-1).view(torch.uint8), src=0)
        return moved.cpu()

    def wait(self) -> None:
        """Wait until every rank has come here."""
        if self.count > 1:
            with self._meeting():
                self._state.wait_for_everyone()

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """All processes come to the block; ends this process where one is lost. Until all are here,
        they help one another to gather weights."""
        assert Processes._watch is not None
        with Processes._watch.meeting():
            if self.sharing is not None:
                self.sharing.company.come_to()
            yield


def close_process_group(why: str = "", code: int = 1) -> None:
    """Leave the other processes and torch.distributed in order, where a launcher started several;
    torch warns at exit otherwise. why, code: what this process ends with."""
    if Processes._watch is not None:
        Processes._watch.finish(why)
        if Processes._watch.lost:  # torch waits for it once more as Python ends
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class SingleProcess(Processes):
    """This process alone, on the CPU, however many there are: for work that one of them does."""

    def __init__(self) -> None:
        self.rank, self.count, self.is_main = 0, 1, True
        self.launch, self.machines, self.is_first_here = Launch(), 1, True
        self.device = torch.device("cpu")

    def wait(self) -> None:
        """There is nobody to wait for."""


def local_rank_and_count() -> tuple[int, int]:
    """This process's place among those of its machine, and how many these are."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def on_cpu() -> bool:
    """Whether accelerate must be told to stay on the CPU: its launcher was given --cpu, or there
    are several processes and no accelerator, where it would start as many separate runs."""
    several = "LOCAL_RANK" in os.environ or size(os.environ, OF_MPI) > 1
    return is_on(os.environ, "ACCELERATE_USE_CPU") or (
        several and not torch.accelerator.is_available()
    )


def num_machines() -> int:
    """On how many machines the processes of this run are, as far as their launcher tells."""
    if "GROUP_WORLD_SIZE" in os.environ:
        return int(os.environ["GROUP_WORLD_SIZE"])
    here = next((int(os.environ[name]) for name in HERE if name in os.environ), 0)
    return size(os.environ) // here if here else 1
