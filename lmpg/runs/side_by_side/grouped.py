"""Runs of the same settings but for the seed are one curve: its mean, and a 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lmpg.runs.log_lines import is_number
from lmpg.runs.report.history import History
from lmpg.runs.report.panels import evaluations
from lmpg.runs.resumable import MAY_DIFFER, flat
from lmpg.runs.side_by_side.listed_runs import ListedRun

LENGTH = {"run.total_steps", "run.total_timesteps"}
"""What else stands in the section `run` changes no result but by chance."""
T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5 % points of Student's t with 1, 2, … degrees of freedom; 1.96 beyond."""


@dataclass(frozen=True)
class Curves:
    """Mean of several runs at each step [N], and the ends of its interval (the mean itself, of a
    single run)."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass
class Group:
    """Runs that differ in their seeds alone. label: what sets them apart from the other groups."""

    runs: list[ListedRun]
    label: str = ""
    histories: list[History] = field(default_factory=list)

    def read(self) -> None:
        """Read the logs of the runs."""
        self.histories = [History(run.folder) for run in self.runs]
        for history in self.histories:
            history.read()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What all its runs have in common, flat: "section.key" → value."""
        return comparable(self.runs[0].config)

    def logged(self, name: str) -> Curves | None:
        """A metric of training over the steps."""
        return averaged([history.points(name) for history in self.histories])

    def held_out(self, name: str) -> Curves | None:
        """A figure of the evaluations before, while and after training."""
        pairs = zip(self.histories, self.runs)
        return averaged([evaluations(history, name, run.summary) for history, run in pairs])

    def final(self, name: str, part: str = "after") -> tuple[float, float, int] | None:
        """(mean, half the width of its interval, number of runs) of a figure after training; None
        where no run has it."""
        found = [run.summary.get(part, {}).get(name) for run in self.runs]
        values = np.array([x for x in found if is_number(x)], dtype=float)
        if not len(values):
            return None
        return float(values.mean()), float(half_width(values[:, None])[0]), len(values)


def grouped(runs: list[ListedRun]) -> list[Group]:
    """The groups in the order of their first runs, with labels."""
    by_settings: dict[str, Group] = {}
    for run in runs:
        key = repr((run.method, sorted(comparable(run.config).items())))
        by_settings.setdefault(key, Group([])).runs.append(run)
    groups = list(by_settings.values())
    for group in groups:
        alike = [x for x in groups if x.runs[0].method == group.runs[0].method]
        group.label = _label(group, alike)
    return groups


def comparable(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings that may change a run's result by more than chance, flat and as text."""
    return {
        path: str(value)
        for path, value in flat(dict(config)).items()
        if path in LENGTH or not (path.startswith("run.") or path in MAY_DIFFER)
    }


def differing(groups: list[Group]) -> list[str]:
    """Names of the settings that are not the same in all groups."""
    names = dict.fromkeys(name for group in groups for name in group.settings)
    return [n for n in names if len({group.settings.get(n) for group in groups}) > 1]


def _label(group: Group, alike: list[Group]) -> str:
    method = group.runs[0].method
    parts = [f"{name} {group.settings.get(name, '–')}" for name in differing(alike)]
    return f"{method} ({', '.join(parts)})" if parts else method


def averaged(curves: list[list[tuple[float, float]]]) -> Curves | None:
    """The mean of curves over the steps that all have come to, at those of the one with the fewest
    points; None where there is no point. A curve without any is left out."""
    known = [np.array(points, dtype=float) for points in curves if points]
    if not known:
        return None
    fewest = min(known, key=len)
    first = max(points[0, 0] for points in known)
    last = min(points[-1, 0] for points in known)
    steps = fewest[(fewest[:, 0] >= first) & (fewest[:, 0] <= last), 0]
    if not len(steps):
        return None
    values = np.stack([np.interp(steps, points[:, 0], points[:, 1]) for points in known])
    mean, half = values.mean(0), half_width(values)
    return Curves(steps, mean, mean - half, mean + half)


def half_width(values_RN: np.ndarray) -> np.ndarray:
    """Half the width of the 95 % interval of the mean of R independent runs, [N]: Student's t times
    the standard error; 0 of a single one, about which nothing is known."""
    count = len(values_RN)
    if count < 2:
        return np.zeros(values_RN.shape[1])
    t = T_975[count - 2] if count - 2 < len(T_975) else 1.96
    return t * values_RN.std(0, ddof=1) / np.sqrt(count)
