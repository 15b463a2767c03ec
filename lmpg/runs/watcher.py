"""Watches a run while it goes on: says what goes wrong, and keeps its report up to date."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lmpg.runs.alarms import WINDOW, alarms
from lmpg.runs.report.history import History
from lmpg.runs.report.write import write_report
from lmpg.runs.tracking import as_json

log = logging.getLogger(__name__)
SHARE = 0.005
"""Of the run's time that writing the report may take."""
GUESS = 0.1
"""Seconds that a first writing is taken for."""


class Watcher:
    """Looks at each step's metrics.

    every: iterations between writings of the report, or more where they would take more than
    `SHARE` of the time; 0 writes none. asked: see `alarms`. said: kinds of alarms that were said,
    with their texts; each is said once in a run. before: the metrics of the steps that a resumed
    run has done.
    """

    def __init__(
        self,
        every: int,
        asked: Mapping[str, Any],
        said: dict[str, str],
        before: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self.every, self.asked, self.said = every, asked, said
        self._first: list[Mapping[str, Any]] = []
        self._newest: deque[Mapping[str, Any]] = deque(maxlen=WINDOW)
        self._cost, self._written = GUESS, time.perf_counter()
        self._history: History | None = None
        for row in before:
            self._keep(row)

    def alarms(self, step: int, metrics: Mapping[str, Any]) -> list[str]:
        """What has not been said before of what these metrics and the ones before show."""
        self._keep({name: as_json(value) for name, value in metrics.items()})
        found = alarms(self._first, list(self._newest), self.asked)
        new = [kind for kind in found if kind not in self.said]
        for kind in new:
            self.said[kind] = f"step {step}: {found[kind]}"
        return [self.said[kind] for kind in new]

    def write(self, step: int, folder: Path, summary: Callable[[], Mapping]) -> float:
        """Write the report if it is due; the seconds that it took, 0 where it was not."""
        start = time.perf_counter()
        due = self.every and step % self.every == 0
        if not due or start - self._written < self._cost / SHARE:
            return 0.0
        if self._history is None or self._history.folder != folder:
            self._history = History(folder)
        try:
            write_report(folder, summary(), self._history)
        except Exception as error:  # a report is not worth a run
            self.every = 0
            log.warning("report.html could not be written, and waits for the end: %r", error)
        self._written = time.perf_counter()
        self._cost = self._written - start
        return self._cost

    def _keep(self, row: Mapping[str, Any]) -> None:
        if len(self._first) < WINDOW:
            self._first.append(row)
        self._newest.append(row)
