"""What happens to memory that large tensors on the CPU leave behind."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_LARGEST = 2**30
"""Blocks from here on are mapped one by one still; so much may lie free at the heap's end."""


def keep_freed_memory() -> bool:
    """Let glibc reuse large blocks instead of handing them back; False where it can't be told.

    Otherwise each large tensor is mapped anew, and the kernel clears it page by page: 5 to 15 % of
    an update. The peak is the same, but memory stays there after it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, _LARGEST) for name in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
