"""What a run has logged so far, read piece by piece: small in memory however long the run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmpg.runs.log_lines import FILES, is_number, parsed

MOST_POINTS = 400
STEP = re.compile(rb'\{"step": (\d+)[,}]')
TOKENS = b', "tokens": {'
SHOWN_STEPS, MOST_ROWS = 7, 16

Point = tuple[float, float]


class Curve:
    """Points in their order, as means over ever longer stretches of neighbours: twice `MOST_POINTS`
    at most. last: the newest point as it is."""

    def __init__(self) -> None:
        self.last: Point = (0.0, math.nan)
        self._means: list[Point] = []
        self._stretch, self._count, self._x, self._y = 1, 0, 0.0, 0.0

    def add(self, x: float, y: float) -> None:
        """Append a point."""
        self.last = (x, y)
        self._count += 1
        self._x += x
        self._y += y
        if self._count < self._stretch:
            return
        self._means.append((self._x / self._count, self._y / self._count))
        self._count, self._x, self._y = 0, 0.0, 0.0
        if len(self._means) == 2 * MOST_POINTS:
            pairs = zip(self._means[::2], self._means[1::2])
            self._means = [mean_point(pair) for pair in pairs]
            self._stretch *= 2

    @property
    def points(self) -> list[Point]:
        """All of it, the newest stretch as far as it goes."""
        newest = [(self._x / self._count, self._y / self._count)] if self._count else []
        return self._means + newest


class History:
    """The logs of a run's folder. curves: of each metric that is a number. last_step: of them.

    `read` goes on where it stopped before, so that a long run's logs are not read again and again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.curves: dict[str, Curve] = {}
        self.last_step = 0
        self._read = dict.fromkeys(FILES, 0)
        self._samples: dict[int, list[int]] = {}  # step: where its lines begin
        self._with_tokens: set[int] = set()

    def read(self) -> None:
        """Take in what has been logged since the last time; a line cut short by a crash is not."""
        for _, line in self._new_lines("metrics.jsonl"):
            row = parsed(line)
            if row is None:
                continue
            step = row.pop("step")
            self.last_step = max(self.last_step, step)
            for name, value in row.items():
                if is_number(value):
                    if name not in self.curves:
                        self.curves[name] = Curve()
                    self.curves[name].add(step, value)
        for place, line in self._new_lines("samples.jsonl"):
            if found := STEP.match(line):
                step = int(found[1])
                self._samples.setdefault(step, []).append(place)
                if TOKENS in line:
                    self._with_tokens.add(step)

    def points(self, name: str) -> list[Point]:
        """A metric's curve; [] where it was not logged."""
        curve = self.curves.get(name)
        return curve.points if curve else []

    def samples(self) -> dict[int, list[dict[str, Any]]]:
        """Rows of samples.jsonl: of the first, the middle and the last step, of those that have the
        numbers of tokens where any does, and of some in between."""
        steps = spread(sorted(self._samples), SHOWN_STEPS)
        chosen = set(steps) | set(spread(sorted(self._with_tokens), 3))
        found: dict[int, list[dict[str, Any]]] = {}
        if not chosen:
            return found
        with (self.folder / "samples.jsonl").open("rb") as file:
            for step in sorted(chosen):
                found[step] = []
                for place in self._samples[step][:MOST_ROWS]:
                    file.seek(place)
                    row = parsed(file.readline())
                    found[step] += [] if row is None else [row]
        return found

    def _new_lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        """Whole lines that were not read yet, and where they begin."""
        path = self.folder / name
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read[name])
            for line in file:
                if not line.endswith(b"\n"):
                    break
                place, self._read[name] = self._read[name], self._read[name] + len(line)
                yield place, line


def spread(steps: list[int], most: int) -> list[int]:
    """At most `most` of the steps, evenly spread, the first and the last among them."""
    if len(steps) <= most:
        return steps
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def mean_point(points: Any) -> Point:
    """The mean of points."""
    return (sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points))
