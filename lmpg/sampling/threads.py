"""How many threads a rollout is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
