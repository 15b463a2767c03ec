"""What happens to memory that large tensors on the CPU leave behind."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import platform
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)

_LARGEST = 2**30
"""Blocks from here on are mapped one by one still."""

_NEVER = -1
"""Free memory at the heap's end that is handed back: none, however much."""

_PIECE = _LARGEST // 2


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
            _grow_heap(libc)
        with contextlib.suppress(OSError, AttributeError):  # a kernel without them
            _ask_for_large_pages(libc)
    return bool(kept)


def _addresses_are_free() -> bool:
    """Whether to hold many takes them from nobody: no limit to them, nor a kernel that counts them
    as memory."""
    policy = Path("/proc/sys/vm/overcommit_memory")
    strict = not policy.exists() or policy.read_text(encoding="utf-8").strip() == "2"
    limits = [resource.getrlimit(x)[0] for x in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return all(x == resource.RLIM_INFINITY for x in limits) and not strict


def _grow_heap(libc: Any) -> None:
    """By addresses alone: memory comes with use."""
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
