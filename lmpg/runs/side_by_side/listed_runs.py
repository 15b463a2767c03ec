"""The runs in a folder: what each is, how far it has come, and what it has gained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmpg.runs.folder import CONFIG, FINISHED, read_config, read_summary
from lmpg.runs.lock import is_held
from lmpg.runs.log_lines import is_number, parsed
from lmpg.runs.printable import printable
from lmpg.runs.report.meanings import HEADLINES
from lmpg.settings.section import UserError

DEPTH = 3
_END = 1 << 16


@dataclass(frozen=True)
class ListedRun:
    """A run in `folder`, by its settings and what it has left there. state: finished, running,
    stopped, or unreadable where its settings cannot be read."""

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    state: str
    steps: int

    @property
    def method(self) -> str:
        """The preset, algorithm or stage, as it was called."""
        known = (self.config.get("algorithm") or {}).get("name")
        return str(self.summary.get("name") or known or "–")

    @property
    def model(self) -> str:
        """The model that the run began with, or its environment, in a word or two."""
        if "env" in self.config:
            return str((self.config["env"] or {}).get("id", "–"))
        if not self.config:
            return "–"
        path = (self.config.get("model") or {}).get("path")
        if path is not None:
            return str(path) if str(path).count("/") == 1 else Path(str(path)).name
        return f"world:{(self.config.get('data') or {}).get('world', 'reviews')}"

    @property
    def planned(self) -> int | None:
        """Steps that it was to do; None where the data decide."""
        total = (self.config.get("run") or {}).get("total_steps")
        return total if isinstance(total, int) and total < 10**9 else None

    @property
    def headline(self) -> tuple[str, float | None, float | None]:
        """(name, before, after) of the figure that matters most."""
        before, after = (self.summary.get(part) or {} for part in ("before", "after"))
        found = [n for n in HEADLINES if is_number(before.get(n)) or is_number(after.get(n))]
        name = found[0] if found else ""
        return name, before.get(name), after.get(name)


def listed_run(folder: Path) -> ListedRun:
    """The run in a folder; UserError where there is none."""
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder} holds no run of lmpg ({CONFIG} is missing), expected a run's folder or one "
            "that holds runs"
        )
    config, summary = read_config(folder / CONFIG), read_summary(folder)
    running = is_held(folder)
    finished = summary.get("exit_reason") == FINISHED
    state = "running" if running else "finished" if finished else "stopped"
    return ListedRun(folder, config, summary, state, _steps(folder, {} if running else summary))


def runs_in(folder: Path) -> list[ListedRun]:
    """The runs at `folder` or below it, those of pipelines too, by their names; UserError without
    any."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder, expected one with runs, such as runs/")
    found = [_or_unreadable(path) for path in _folders(folder, DEPTH)]
    if not found:
        raise UserError(f"{folder} holds no run of lmpg, expected a run's folder or one with runs")
    return found


def lines(runs: list[ListedRun], root: Path) -> list[str]:
    """A table of runs; what steers a terminal is spelt out."""
    head = ["run", "method", "model", "steps", "state", "before → after"]
    rows = [head, *(_cells(run, root) for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return [
        printable("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        for row in rows
    ]


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / CONFIG).is_file():
        yield folder
    elif depth:
        with suppress(PermissionError):  # what may not be read holds no run of the user's
            for inside in sorted(x for x in folder.iterdir() if x.is_dir() and x.name[0] != "."):
                yield from _folders(inside, depth - 1)


def _or_unreadable(folder: Path) -> ListedRun:
    try:
        return listed_run(folder)
    except UserError:  # one damaged run does not hide the others
        return ListedRun(folder, {}, {}, "unreadable", 0)


def _steps(folder: Path, summary: Mapping[str, Any]) -> int:
    """Steps done: of the summary, or of the last line of the metrics."""
    log = folder / "metrics.jsonl"
    if isinstance(summary.get("steps"), int):
        return summary["steps"]
    if not log.is_file():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _END))
        rows = [row for row in map(parsed, file.read().splitlines()) if row is not None]
    return int(rows[-1]["step"]) if rows else 0


def _cells(run: ListedRun, root: Path) -> list[str]:
    name, before, after = run.headline
    inside = run.folder.relative_to(root) if run.folder != root else Path(run.folder.name)
    done = str(run.steps) if run.planned is None else f"{run.steps}/{run.planned}"
    gained = f"{name} {_figure(before)} → {_figure(after)}" if name else "–"
    return [str(inside), run.method, run.model, done, run.state, gained]


def _figure(value: float | None) -> str:
    return f"{value:.3f}" if is_number(value) else "–"
