"""Runs in processes of their own that kill themselves at a chosen moment.

A moment is the n-th time that a run touches a file of its folder: opens, renames or deletes one,
or has written a line of metrics or samples. Processes are forks of the test's own, which has
imported everything, so each starts at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lmpg.cli.main import main, train_agent
from lmpg.runs.tracking import Tracker
from tests.support.programs import ROOT, run_here, words

FORKING = multiprocessing.get_context("fork")
TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def live(program: str, flags: dict[str, Any], at: int = 0, within: str = "") -> tuple[int, str]:
    """Exit code and output of a run that is killed at moment `at`; 0 is never.

    Counted are only moments that have to do with a path that has `within` in it.
    """
    log = Path(f"{flags['run.output-dir']}.log")
    process = FORKING.Process(target=_live, args=(program, flags, at, within, log))
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode, log.read_text()


def moments(program: str, flags: dict[str, Any]) -> int:
    """How many moments a run has from beginning to end."""
    code, output = live(program, flags)
    assert code == 0, output
    return int(output.splitlines()[-1].split()[0])


def _live(program: str, flags: dict[str, Any], at: int, within: str, log: Path) -> None:
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    for descriptor in (1, 2):
        os.dup2(sys.stdout.fileno(), descriptor)
    os.chdir(ROOT)
    clock = _Clock(str(flags["run.output-dir"]), within, at)
    sys.addaudithook(clock.audit)
    append = Tracker._append

    def touching(self, name, row):
        append(self, name, row)
        clock.tick(name)

    Tracker._append = touching
    main(lambda: _run(program, flags))
    print(clock.now, "moments", flush=True)


def _run(program: str, flags: dict[str, Any]) -> None:
    if program == "gym":
        train_agent(words(flags))
    else:
        run_here(program, flags)


class _Clock:
    """Counts moments, and kills this process when it is time."""

    def __init__(self, folder: str, within: str, at: int) -> None:
        self.folder, self.within, self.at, self.now = folder, within, at, 0

    def audit(self, event: str, args: tuple) -> None:
        """Called by Python for whatever might be of interest."""
        if event in TOUCHES and str(args[0]).startswith(f"{self.folder}/"):
            self.tick(str(args[0]))

    def tick(self, path: str) -> None:
        """One more moment has come."""
        self.now += self.within in path
        if self.now == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
