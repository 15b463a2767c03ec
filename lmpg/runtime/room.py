"""How much memory the machine has for this process: its device's, or the host's within limits."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from lmpg.runtime.machine import give_back_freed_memory
from lmpg.runtime.processes import Processes

_GROUPS = Path("/sys/fs/cgroup")
_FILES = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}
"""A control group's limit and what it uses: version 2, version 1."""


def room(device: torch.device | str) -> tuple[int, int]:
    """(all memory, what is free of it now) in bytes; of the host where the device has none of its
    own, no more than the control groups of this process allow."""
    device = torch.device(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for limit, used in limits():
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


class Gaps:
    """What sampling and learning leave between blocks in use, as each needs other sizes.

    Where they are handed back before every phase, its memory is new and cleared page by page: a
    fifth of a step of 135M weights. Where they never are, blocks of other lengths do not fit, and
    memory doubles within 40 steps.
    """

    def __init__(self) -> None:
        self._needed, self._clean = 0, True

    def give_back(self) -> None:
        """Hand the system what was freed, if this process holds a twentieth more than any phase
        has needed that began without gaps; called between two phases."""
        held = psutil.Process().memory_info().rss
        if self._clean:
            self._needed = max(self._needed, held)
        self._clean = held > 1.05 * self._needed
        if self._clean:
            give_back_freed_memory()


GAPS = Gaps()
"""Those of this process."""


def room_of_each(processes: Processes) -> tuple[float, float]:
    """What `room` finds, for each process; those on a CPU share it."""
    share = processes.count if processes.device.type == "cpu" else 1
    whole, free = room(processes.device)
    return whole / share, free / share


def limits(groups: Path = _GROUPS, mine: Path = Path("/proc/self/cgroup")) -> list[tuple[int, int]]:
    """(limit, bytes in use) of every control group with a limit that this process is in, the groups
    above it among them. Pages of files that can be dropped are not in use."""
    try:
        lines = mine.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    found = []
    for folder in {x for line in lines for x in _folders(groups, line)}:
        for limit, used in _FILES.items():
            numbers = [_number(folder / name) for name in (limit, used)]
            if numbers[0] is not None and numbers[1] is not None:
                found.append((numbers[0], max(0, numbers[1] - _droppable(folder / "memory.stat"))))
    return found


def _folders(groups: Path, line: str) -> list[Path]:
    """The folders of a line of /proc/self/cgroup, `number:controllers:path`, up to the root; within
    a container the path may be that of the host, and the root is the container's."""
    _, controllers, path = line.split(":", 2)
    if controllers and "memory" not in controllers.split(","):
        return []
    top = groups / "memory" if controllers else groups
    folder = top / path.lstrip("/")
    return [folder, *(x for x in folder.parents if x.is_relative_to(top))]


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, as `max`."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _droppable(stat: Path) -> int:
    try:
        lines = stat.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
