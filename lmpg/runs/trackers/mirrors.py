"""A run's metrics in experiment trackers. They may be slow, absent or fail: the run goes on.

Each tracker works in a thread of its own, so that the run never waits for it. What fails is said
once; all metrics are in the run's folder whatever becomes of them there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any
from uuid import uuid4

from lmpg.runs.files import write_text
from lmpg.runs.log_lines import log_rows
from lmpg.runs.resumable import flat
from lmpg.runs.trackers import kinds
from lmpg.runs.trackers.kinds import Row, TrackedRun

FILE = "trackers.json"
PATIENCE = 60.0
"""Seconds that the end of a run waits for a tracker to finish."""
logger = logging.getLogger(__name__)


@dataclass
class Mirror:
    """A tracker, and the thread in which it works. problem: why it no longer does.

    keep: told what the tracker knows the run by, once it begins.
    """

    kind: str
    run: TrackedRun
    keep: Callable[[TrackedRun], None]
    problem: str | None = None
    _queue: SimpleQueue = field(default_factory=SimpleQueue)
    _thread: Thread | None = None

    def log(self, step: int, numbers: Mapping[str, float], rows: Sequence[Row]) -> None:
        """Hand a step over; the first one starts the tracker."""
        if self.problem:
            return
        if self._thread is None:
            self.run = replace(self.run, first_step=step)
            if self.kind not in kinds.KEYS:  # what is killed from here on goes on all the same
                self.keep(self.run)
            self._thread = Thread(target=self._work, name=f"lmpg {self.kind}", daemon=True)
            self._thread.start()
        self._queue.put((step, numbers, rows))

    def close(self, patience: float) -> None:
        """Let the tracker finish; one that does not in `patience` seconds is left alone."""
        if self._thread is None:
            return
        self._queue.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            self.problem = f"it has not finished within {patience:g} seconds"

    def _work(self) -> None:
        try:
            tracker = kinds.started(self.kind, self.run)
            if self.kind in kinds.KEYS:
                self.keep(replace(self.run, key=kinds.KEYS[self.kind](tracker.tracker)))
            while (item := self._queue.get()) is not None:
                kinds.log(self.kind, tracker, *item)
            tracker.finish()
        except (Exception, SystemExit) as error:
            logger.debug("%s", self.kind, exc_info=True)
            said = " ".join(str(error).split())[:300]
            self.problem = f"{type(error).__name__}: {said}" if said else type(error).__name__


class Mirrors:
    """The trackers that a run's settings name.

    Steps that are made again after a resume are given to those trackers alone that can forget; the
    others keep what they have.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self.folder, self.say = folder, say
        self._lock, self._told = Lock(), set[str]()
        self._known, self._had = _read(folder)
        run, config = settings["run"], {k: _plain(v) for k, v in flat(dict(settings)).items()}
        name = run.get("name") or folder.resolve().name
        self._mirrors = []
        for kind in dict.fromkeys(run["trackers"]):
            if find_spec(kind) is None:
                self._warn(kind, f"it is not installed (pip install {kind})")
                continue
            known = self._known.get(kind, {})
            going_on = known.get("project") == run["project"]
            key, name_there = (known["key"], known["name"]) if going_on else (uuid4().hex, name)
            tracked = TrackedRun(run["project"], name_there, folder, key, going_on, 0, config)
            self._mirrors.append(Mirror(kind, tracked, partial(self._keep, kind)))

    def log(self, step: int, numbers: Mapping[str, Any], rows: Sequence[Row]) -> None:
        """A step's metrics, of which the finite numbers count, and its samples."""
        finite = {k: float(v) for k, v in numbers.items() if isinstance(v, int | float)}
        for mirror in self._mirrors:
            again = mirror.run.going_on and step <= self._had
            if again and mirror.kind not in kinds.REWINDS:
                self._say_once(
                    mirror.kind,
                    f"{mirror.kind} has steps {step} to {self._had} already and keeps them as they "
                    "were; metrics.jsonl has them as they are made again",
                )
                continue
            mirror.log(step, finite, [] if again else rows)
            self._look_at(mirror)

    def close(self) -> None:
        """Let all finish."""
        for mirror in self._mirrors:
            mirror.close(PATIENCE)
            self._look_at(mirror)

    def _look_at(self, mirror: Mirror) -> None:
        if mirror.problem:
            self._warn(mirror.kind, mirror.problem)

    def _warn(self, kind: str, why: str) -> None:
        self._say_once(
            f"{kind} failed",
            f"warning: run.trackers = {kind}: {why}; the run goes on without it, and metrics.jsonl "
            "has all metrics",
        )

    def _say_once(self, about: str, text: str) -> None:
        if about not in self._told:
            self._told.add(about)
            self.say(text)

    def _keep(self, kind: str, run: TrackedRun) -> None:
        """Remember what the tracker knows the run by, for a resume."""
        with self._lock:
            found = {"project": run.project, "name": run.name, "key": run.key}
            if self._known.get(kind) != found:
                self._known[kind] = found
                with suppress(OSError):  # a disk that is full ends the run in its own words
                    _write(self.folder, self._known, self._had)


def remember_steps(folder: Path) -> None:
    """Note how far the run's trackers have come, before metrics.jsonl is cut back."""
    known, had = _read(folder)
    if known:
        _write(folder, known, max(had, _last_step(folder / "metrics.jsonl")))


def _last_step(path: Path) -> int:
    """The last step of the whole lines; 0 where there are none."""
    return max((int(row["step"]) for row in log_rows(path)), default=0)


def _write(folder: Path, known: dict[str, dict[str, str]], steps: int) -> None:
    text = json.dumps({"steps": steps, "trackers": known}, indent=2, ensure_ascii=False)
    write_text(folder / FILE, text + "\n")


def _read(folder: Path) -> tuple[dict[str, dict[str, str]], int]:
    """What each tracker knows the run by, and the last step that they have been given."""
    try:
        found = json.loads((folder / FILE).read_bytes())
        known = {
            kind: {name: str(x[name]) for name in ("project", "name", "key")}
            for kind, x in found["trackers"].items()
        }
        return known, int(found["steps"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}, 0  # there is none: every tracker gets a new run


def _plain(value: Any) -> Any:
    """A setting as all trackers take it."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else value
