"""A world on every machine of a run as the main process makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lmpg.language.worlds.cache import asked_for, cache_folder
from lmpg.runtime.processes import Processes
from lmpg.training.disks.copied_folders import copied

T = TypeVar("T")


def made_by_main(processes: Processes, build: Callable[[], T]) -> T:
    """What `build` makes of folders in the cache, on every rank; the main process makes those that
    are missing, and other machines have what it has: made there, they might differ in last bits."""

    def names() -> list[str]:
        before = len(asked_for)
        build()
        return list(dict.fromkeys(asked_for[before:]))

    for name in processes.on_main(names):
        copied(cache_folder() / name, processes)
    return build()
