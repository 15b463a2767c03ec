"""Programs that train side by side and take turns, step by step, so that noise hits all alike.

Every contestant is a process of its own and stays alive; while one does a step, the others wait
at the end of theirs. In the program, `Turn` is called between two steps; outside, `Contestant`
gives it the go. What is timed is everything from one call to the next, logging and all.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VARIABLE = "LOCKSTEP"
KIB_PER_GB = 1e9 / 1024


class Turn:
    """In the program that is timed: call it at the end of every step with what there is to say.

    In a program that was started by itself it prints that, and waits for nobody.
    """

    def __init__(self) -> None:
        ends = os.environ.get(VARIABLE)
        reading, writing = map(int, ends.split(",")) if ends else (None, None)
        self._go = os.fdopen(reading) if reading else None
        self._told = os.fdopen(writing, "w") if writing else sys.stdout
        self._since: tuple[float, float] | None = None

    def __call__(self, **facts: Any) -> None:
        """Tell how long the step took, on the clock and of all threads, and wait for the go."""
        now, since = (time.perf_counter(), time.process_time()), self._since
        seconds, cpu = (None, None) if since is None else (now[0] - since[0], now[1] - since[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_GB
        told = {"seconds": seconds, "cpu_seconds": cpu, "peak_gb": peak, **facts}
        self._told.write(json.dumps(told) + "\n")
        self._told.flush()
        if self._go:
            self._go.readline()
        self._since = time.perf_counter(), time.process_time()


class Contestant:
    """A program that takes turns, from `start` on. `log` gets what it prints."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path):
        self.name = name
        self.told: list[dict[str, Any]] = []
        self._log = log
        self._command, self._environment = command, environment

    def start(self) -> None:
        """Start it; it does its first step without a go."""
        its_read, my_write = os.pipe()
        my_read, its_write = os.pipe()
        variables = {**os.environ, **self._environment, VARIABLE: f"{its_read},{its_write}"}
        with self._log.open("w") as file:
            self._process = subprocess.Popen(
                self._command,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=(its_read, its_write),
            )
        os.close(its_read)
        os.close(its_write)
        self._go = os.fdopen(my_write, "w")
        self._answers = os.fdopen(my_read)

    def hear(self) -> dict[str, Any]:
        """Wait for the end of its step."""
        line = self._answers.readline()
        if not line:
            last = "\n".join(self._log.read_text().splitlines()[-15:])
            sys.exit(f"{self.name} ended before its last step; it said:\n{last}")
        self.told.append(json.loads(line))
        return self.told[-1]

    def go(self) -> None:
        """Let it go on."""
        self._go.write("go\n")
        self._go.flush()

    def finish(self) -> None:
        """Let it run to its end, whatever is left."""
        self._go.close()
        self._answers.close()
        self._process.wait()


def race(contestants: list[Contestant], warm: int, counted: int) -> dict[str, list[dict[str, Any]]]:
    """What each told of its last `counted` steps, after `warm` that are not counted.

    One starts after the other: in its first step a program loads and compiles, and threads of
    several that compute at once wait for each other.
    """
    for contestant in contestants:
        contestant.start()
        contestant.hear()
    for _ in range(warm - 1 + counted):
        for contestant in contestants:
            contestant.go()
            contestant.hear()
    for contestant in contestants:
        contestant.finish()
    return {x.name: x.told[-counted:] for x in contestants}
