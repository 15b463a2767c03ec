"""Programs as guests of a process that goes on after them."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lmpg.runs.lock import let_go, opened


@contextmanager
def as_found() -> Iterator[None]:
    """Gives back at the end what a program on the command line keeps until it ends: the lock on the
    run's folder, and the number of threads."""
    import torch

    from lmpg.runtime.machine import limit_threads
    from lmpg.runtime.processes import close_process_group

    atexit.unregister(close_process_group)  # once, however many programs there are
    atexit.register(close_process_group)
    threads, before = torch.get_num_threads(), opened()
    try:
        yield
    except KeyboardInterrupt:
        for path in (x for x in opened() if x not in before):
            print(
                f"interrupted; go on with the same call and run={{'output_dir': '{path}', "
                "'resume': True}",
                file=sys.stderr,
            )
        raise
    finally:
        for path in [x for x in opened() if x not in before]:
            let_go(path)
        limit_threads(threads)
