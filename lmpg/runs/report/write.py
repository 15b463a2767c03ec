"""Writes report.html: curves, evaluations, samples and settings of a run in one file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from lmpg.runs.files import write_text
from lmpg.runs.folder import REPORT, read_summary
from lmpg.runs.log_lines import is_number
from lmpg.runs.report.charts import draw, figure, number
from lmpg.runs.report.history import History
from lmpg.runs.report.meanings import HEADLINES, held_out_note
from lmpg.runs.report.page import page, settings_block, table
from lmpg.runs.report.panels import panels
from lmpg.runs.report.sample_rows import samples_block
from lmpg.runtime.progress import clock

CARDS = {"kl": "kl to the reference"}
OWN_PLACE = {
    "name",
    "exit_reason",
    "before",
    "after",
    "best",
    "seconds",
    "warnings",
    "written",
    "total_steps",
}
RUNNING = "still running"


def write_report(
    run_dir: Path, summary: Mapping | None = None, history: History | None = None
) -> Path:
    """Write report.html from the files in a run's folder; returns its path. Missing files are
    skipped.

    summary: of a run that goes on, which has no summary.json yet. history: what was read of its
    logs so far.
    """
    run_dir = Path(run_dir)
    summary = read_summary(run_dir) if summary is None else summary
    history = history or History(run_dir)
    history.read()
    config = run_dir / "config.yaml"
    text = page(
        title=" · ".join(str(summary[k]) for k in ("name", "env") if k in summary) or run_dir.name,
        status=str(summary.get("exit_reason", RUNNING)),
        lead=_lead(summary, history),
        warnings=_warnings(summary),
        cards=_cards(summary),
        figures=[[draw(panel) for panel in part] for part in panels(history, summary)],
        sections={
            "Before and after": before_after(summary),
            "Samples": samples_block(history.samples()),
            "Where the time went": _times(summary),
            "The run": table(["", ""], _facts(summary)),
            "Settings": settings_block(config.read_text("utf-8") if config.exists() else ""),
        },
    )
    path = run_dir / REPORT
    write_text(path, text)
    return path


def before_after(summary: Mapping) -> str:
    """The evaluations as a table, with what changed."""
    before, after, best = (summary.get(part, {}) for part in ("before", "after", "best"))
    names = [n for n in {**before, **after} if is_number(before.get(n, after.get(n)))]
    rows = []
    for name in names:
        old, new = before.get(name), after.get(name)
        broken = re.sub("(?<=[/_])", "<wbr>", escape(name))  # at these, on a narrow page
        cells = [figure(old), figure(new), _change(old, new)]
        cells += [figure(best.get(name))] if best else []
        rows.append(
            [
                f"<b>{broken}</b>",
                *cells,
                f'<span class="note">{escape(held_out_note(name))}</span>',
            ]
        )
    best_column = [f"best (step {best.get('step')})"] if best else []
    return table(["", "before", "after", "change", *best_column, ""], rows) if rows else ""


def _change(old: Any, new: Any) -> str:
    if not is_number(old) or not is_number(new):
        return "–"
    return ("+" if new > old else "") + figure(new - old)


def before_after_lines(summary: Mapping) -> str:
    """The same table for a terminal."""
    before, after = summary.get("before", {}), summary.get("after", {})
    lines = [f"{'':>18}  {'before':>10}  {'after':>10}"]
    for name in {**before, **after}:
        cells = "  ".join(f"{figure(part.get(name)):>10}" for part in (before, after))
        lines.append(f"{name:>18}  {cells}")
    return "\n".join(lines)


def _cards(summary: Mapping) -> list[tuple[str, str, str]]:
    """The figures that matter most: name, before, after."""
    before, after = summary.get("before", {}), summary.get("after", {})
    names = [n for n in HEADLINES if is_number(after.get(n))][:4]
    return [(CARDS.get(n, n), figure(before.get(n)), figure(after[n])) for n in names]


def _warnings(summary: Mapping) -> list[str]:
    """What went wrong while the run went on."""
    found = summary.get("warnings")
    return [str(text) for text in found] if isinstance(found, list) else []


def _lead(summary: Mapping, history: History) -> str:
    """One line under the title: how long, how much, how fast, on what."""
    steps, total = summary.get("steps", history.last_step), summary.get("total_steps")
    parts = [f"{number(steps)}{f' of {number(total)}' if total else ''} iterations"]
    if "written" in summary:
        parts.append(f"written {summary['written']}")
    seconds = sum(v for v in summary.get("seconds", {}).values() if v) - (
        summary.get("seconds", {}).get("this_process") or 0
    )
    if seconds > 0:
        parts.append(f"{clock(seconds)} of work")
    for unit in ("tokens", "steps"):
        if summary.get(f"{unit}_per_second"):
            parts.append(f"{number(round(summary[f'{unit}_per_second']))} {unit} per second")
    if summary.get("num_processes"):
        count = summary["num_processes"]
        parts.append(f"{count} process{'es' if count > 1 else ''} on {summary.get('device')}")
    return " · ".join(parts)


def _times(summary: Mapping) -> str:
    """A bar per phase, relative to all of them."""
    phases = {
        name.removeprefix("time/"): seconds
        for name, seconds in summary.get("seconds", {}).items()
        if name != "this_process" and seconds
    }
    whole = sum(phases.values())
    rows = [
        f'<tr><td>{escape(name)}</td><td class="num">{clock(seconds)}</td><td class="bar">'
        f'<div style="width:{100 * seconds / whole:.1f}%"></div></td>'
        f'<td class="num">{seconds / whole:.0%}</td></tr>'
        for name, seconds in sorted(phases.items(), key=lambda item: -item[1])
    ]
    return f'<table class="times">{"".join(rows)}</table>' if rows else ""


def _facts(summary: Mapping, prefix: str = "") -> list[list[str]]:
    rows: list[list[str]] = []
    for name, value in summary.items():
        if not prefix and name in OWN_PLACE:
            continue
        if name == "versions":
            rows.append([name, escape(", ".join(f"{k} {v}" for k, v in value.items()))])
        elif isinstance(value, Mapping):
            rows += _facts(value, f"{prefix}{name}.")
        else:
            shown = number(value) if is_number(value) else str(value)
            rows.append([escape(prefix + name), escape(shown)])
    return rows
