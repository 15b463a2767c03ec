"""What a run takes of the machine: seconds by phase, CPU threads, memory, packages."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmpg import __version__

OWN_THREADS = torch.get_num_threads()
"""CPU threads that torch chose for itself, or was given before lmpg was imported."""

SMALL_MODEL = 2**22
"""Weights from which on a second CPU thread is worth having. With two free cores it makes a
learning step of 1 million weights 1.2 to 1.7 times as fast, of 8 million 1.6 to 1.9 times; where
other work holds the cores, it makes steps 2 to 18 times as slow (docs/performance.md)."""

SETTERS = ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads")

_SHARED_FROM = 2**25
"""Multiplications per step that take about as long as waking a second thread for each of them."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)

_LARGEST = 2**30
"""Blocks from here on are mapped one by one still."""

_NEVER = -1
"""Free memory at the heap's end that is handed back: none, however much."""

_PIECE = _LARGEST // 2
_ALL = 2**62


class Stopwatch:
    """`with watch("time/update"): …` adds the block's seconds to `watch.seconds`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def total(self) -> float:
        """Seconds since this stopwatch was made."""
        return time.perf_counter() - self._start


def peak_memory_gb(device: torch.device) -> float:
    """Most memory this process has held so far: on the GPU if it uses one, else resident (GB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


WITHOUT_FLOAT64 = frozenset({"mps"})
"""Kinds of devices that have no float64, and end a program that asks for it: Apple's GPU."""


def widest(device: torch.device) -> torch.dtype:
    """The widest floats that a device has, for sums of many numbers: float64, else float32."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def limit_threads(count: int) -> None:
    """Let both use `count` threads at most; numpy's only where it came with OpenBLAS, as its own
    wheels do. Products as small as an agent's are slower on several."""
    torch.set_num_threads(count)
    package = Path(np.__file__).parent
    for folder in (package.with_name("numpy.libs"), package / ".dylibs"):
        for path in folder.glob("*openblas*"):
            library = ctypes.CDLL(str(path))
            for name in SETTERS:
                if hasattr(library, name):
                    getattr(library, name)(count)


def threads_by_environment(most: int) -> int:
    """OMP_NUM_THREADS, set by the user or by a launcher; 0 where it names no number up to `most`
    (torch passes over those that are far too many)."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    count = int(first) if first.isdecimal() and len(first) < 10 else 0
    return count if count <= most else 0


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch for the time of the block: its result depends on no machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def worthwhile_threads(multiplications: int) -> Iterator[None]:
    """One thread for the time of the block if a step has too few multiplications to share."""
    alone = multiplications < _SHARED_FROM and torch.get_num_threads() > 1
    with one_thread() if alone else contextlib.nullcontext():
        yield


def keep_freed_memory() -> bool:
    """Let glibc reuse large blocks instead of handing them back; False where it can't be told.

    Otherwise each large tensor is mapped anew, and the kernel clears it page by page: 5 to 15 % of
    an update. The peak is the same, but memory stays there after it. Where the kernel offers pages
    of 2 MiB to those who ask, the heap asks for half of the machine's memory: up to 10 % of an
    update goes into the search for small ones. Only what is used takes memory; where addresses are
    limited or count as memory, the heap asks for what it has.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    kept = mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _NEVER)
    if kept:
        if _addresses_are_free():
            _grow_heap()
        with contextlib.suppress(OSError, AttributeError):  # a kernel without them
            _ask_for_large_pages(libc)
    return bool(kept)


def give_back_freed_memory() -> None:
    """Hand the system what was freed between blocks in use, where glibc can; see above. A large
    model's update then takes new memory instead of growing the heap around gaps that do not fit."""
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            trim = ctypes.CDLL(None).malloc_trim
            trim.argtypes = [ctypes.c_size_t]
            trim(_ALL)  # the end of the heap, which is in one piece, stays


def _addresses_are_free() -> bool:
    """Whether to hold many takes them from nobody: no limit to them, nor a kernel that counts them
    as memory."""
    policy = Path("/proc/sys/vm/overcommit_memory")
    strict = not policy.exists() or policy.read_text(encoding="utf-8").strip() == "2"
    limits = [resource.getrlimit(x)[0] for x in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return all(x == resource.RLIM_INFINITY for x in limits) and not strict


@cache
def _grow_heap() -> None:
    """By addresses alone, and once in a process: memory comes with use, and what was asked for
    again would be in large pages, of which each piece uses one."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    memory = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    for address in [libc.malloc(_PIECE) for _ in range(memory // 2 // _PIECE)]:
        libc.free(address)


def _ask_for_large_pages(libc: Any) -> None:
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith("[heap]"):
            first, end = (int(x, 16) for x in line.split()[0].split("-"))
            libc.madvise(first, end - first, mmap.MADV_HUGEPAGE)


@contextmanager
def new_objects_only() -> Iterator[None]:
    """Hides the objects that exist already from the garbage collector (gc.freeze): they live until
    the end anyway, and going through torch's modules once takes as long as a short rollout."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose code computes a run's numbers."""
    found = {"python": platform.python_version(), "lmpg": __version__}
    for package in ("torch", "transformers", "accelerate", "peft", "gymnasium", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
