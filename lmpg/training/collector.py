"""Python's garbage collector while a run goes on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def new_objects_only() -> Iterator[None]:
    """What is there already is left alone, as it lives until the end anyway: to go through torch's
    modules once takes as long as a short rollout."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
