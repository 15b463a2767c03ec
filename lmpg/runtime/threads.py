"""CPU threads of torch and of numpy, which bring a pool each."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

SETTERS = ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads")


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


_SHARED_FROM = 2**25
"""Multiplications per step that take about as long as waking a second thread for each of them."""


@contextmanager
def worthwhile_threads(multiplications: int) -> Iterator[None]:
    """One thread for the time of the block if a step has too few multiplications to share."""
    before = torch.get_num_threads()
    alone = multiplications < _SHARED_FROM and before > 1
    if alone:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if alone:
            torch.set_num_threads(before)
