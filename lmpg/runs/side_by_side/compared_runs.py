"""Compares runs: a table for the terminal, and one page of HTML that stands alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lmpg.runs.files import write_text
from lmpg.runs.printable import printable
from lmpg.runs.report.charts import Panel, Series, draw, figure
from lmpg.runs.report.meanings import HELD_OUT, chart_title, words
from lmpg.runs.report.page import page, table
from lmpg.runs.report.panels import FIRST, ORDER
from lmpg.runs.side_by_side.grouped import Curves, Group, differing, grouped
from lmpg.runs.side_by_side.listed_runs import runs_in
from lmpg.settings.section import UserError


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, each of several seeds, side by side."""

    groups: list[Group]

    @property
    def figures(self) -> list[str]:
        """Names of what was measured after training, what matters most first."""
        found = dict.fromkeys(
            name
            for group in self.groups
            for run in group.runs
            for name in run.summary.get("after", {})
        )
        return [n for n in HELD_OUT if n in found] + [n for n in found if n not in HELD_OUT]

    def lines(self) -> list[str]:
        """The figures of all groups after training, with 95 % intervals over the runs."""
        labels = [f"{group.label}, {_runs(group)}" for group in self.groups]
        width = max(24, *(len(label) for label in labels)) if len(self.groups) > 2 else 24
        told = []
        for name in self.figures:
            told.append(f"{name}:")
            for label, group in zip(labels, self.groups):
                told.append(f"  {label:{width}}  {_told(group, name)}")
        unfinished = [str(r.folder) for g in self.groups for r in g.runs if r.state != "finished"]
        if unfinished:
            told.append(f"not finished: {', '.join(unfinished)}")
        return [printable(line) for line in told]

    def html(self) -> str:
        """The page."""
        count = sum(len(group.runs) for group in self.groups)
        held_out = [panel for name in HELD_OUT if (panel := self._held_out(name))]
        logged = [panel for (name, *_) in ORDER if (panel := self._logged(name))]
        return page(
            title="Runs side by side",
            status=f"{count} runs",
            lead=" · ".join(f"{group.label}: {_runs(group)}" for group in self.groups)
            + ". Lines are means over runs, bands their 95 % intervals (Student's t).",
            warnings=[],
            cards=[],
            figures=[
                [draw(x) for x in (held_out + logged)[:FIRST]],
                [draw(x) for x in (held_out + logged)[FIRST:]],
                [],
            ],
            sections={
                "Before and after": self._table(),
                "Settings that differ": self._settings(),
                "The runs": self._runs_table(),
            },
        )

    def write(self, path: Path) -> Path:
        """Write the page; returns where it is."""
        write_text(path, self.html())
        return path

    def _held_out(self, name: str) -> Panel | None:
        curves = [(group.label, group.held_out(name)) for group in self.groups]
        return _panel(f"{name}, held out", curves, HELD_OUT[name])

    def _logged(self, name: str) -> Panel | None:
        curves = [(group.label, group.logged(name)) for group in self.groups]
        return _panel(chart_title(name), curves, *words(name))

    def _table(self) -> str:
        rows = [
            [f"<b>{escape(name)}</b>", *(escape(_told(group, name)) for group in self.groups), ""]
            for name in self.figures
        ]
        return table(["before → after", *(group.label for group in self.groups), ""], rows)

    def _settings(self) -> str:
        rows = [
            [escape(name), *(escape(group.settings.get(name, "–")) for group in self.groups), ""]
            for name in differing(self.groups)
        ]
        return table(["", *(group.label for group in self.groups), ""], rows)

    def _runs_table(self) -> str:
        rows = [
            [escape(str(run.folder)), str(run.steps), escape(run.state), escape(group.label)]
            for group in self.groups
            for run in group.runs
        ]
        return table(["run", "steps", "state", "in"], rows)


def compare(paths: Iterable[str | Path]) -> Comparison:
    """The runs in these folders side by side; a folder that holds runs stands for all of them.
    UserError where one holds none, or none was logged."""
    folders = [Path(path).expanduser() for path in paths]
    if not folders:
        raise UserError("expected folders of runs to compare, such as runs/a runs/b")
    runs = {run.folder.resolve(): run for folder in folders for run in runs_in(folder)}
    groups = grouped(list(runs.values()))
    for group in groups:
        group.read()
    return Comparison(groups)


def _panel(title: str, curves: Sequence[tuple[str, Curves | None]], *words: str) -> Panel | None:
    """One line a group; None where no group has it over several steps."""
    series = [
        Series(label, _pairs(x.steps, x.mean), band=list(zip(x.low.tolist(), x.high.tolist())))
        for label, x in curves
        if x is not None
    ]
    if not any(len(x.points) > 1 for x in series):
        return None
    return Panel(title, series, *words)


def _pairs(steps, values) -> list[tuple[float, float]]:
    return list(zip(steps.tolist(), values.tolist()))


def _runs(group: Group) -> str:
    return "1 run" if len(group.runs) == 1 else f"{len(group.runs)} runs"


def _told(group: Group, name: str) -> str:
    before, after = group.final(name, "before"), group.final(name)
    if after is None:
        return "–"
    spread = f" ± {figure(after[1])}" if after[2] > 1 else ""
    start = f"{figure(before[0])} → " if before else ""
    return f"{start}{figure(after[0])}{spread}"
