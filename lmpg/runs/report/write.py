"""Writes report.html: curves, evaluations, samples and settings of a run in one file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from lmpg.runs.files import write_text
from lmpg.runs.folder import REPORT, read_summary
from lmpg.runs.progress_line import clock
from lmpg.runs.report.charts import Panel, Point, Series, draw, number
from lmpg.runs.report.page import page, samples_block, settings_block, table

PANELS = (  # title, metrics, what to look for; "eval" figures of the same name become dots
    ("Reward", ("reward",), "Mean score of the responses, or what the environment paid."),
    ("Episode return", ("episode/return_mean",), "Mean return of the episodes that ended."),
    ("Episode length", ("episode/length_mean",), "Mean length of the episodes that ended."),
    ("Reward spread", ("reward_std",), "Standard deviation; 0 teaches nothing."),
    ("KL to the reference", ("objective/kl",), "Nats per response; large values mean drift."),
    ("Accuracy", ("accuracy",), "Share of right answers."),
    ("Pair accuracy", ("pair_accuracy",), "Share of pairs ranked rightly."),
    ("Loss", ("loss/total", "loss"), "What the optimizer minimises."),
    ("Policy loss", ("loss/policy",), "Its level says little: the policy it is taken from moves."),
    ("Value loss", ("loss/value",), "How far the critic is off."),
    ("KL term", ("loss/kl",), "The KL penalty inside the loss."),
    (
        "Explained variance",
        ("value/explained_variance",),
        "Of the returns, by the critic; 1 is all.",
    ),
    ("Entropy", ("policy/entropy",), "Nats per step; near 0 the policy has collapsed."),
    ("Update size (approx. KL)", ("policy/approx_kl",), "Old to new policy, within one update."),
    ("Clip fraction", ("policy/clip_fraction",), "Share of steps whose gradient was clipped away."),
    ("Largest ratio", ("policy/ratio_max",), "π/π_old of the step that moved most."),
    ("Response length", ("completions/mean_length",), "Tokens."),
    ("Cut off", ("completions/clipped_ratio",), "Share of responses that reached the limit."),
    ("Groups without spread", ("frac_reward_zero_std",), "They teach nothing."),
    ("Gradient norm", ("grad_norm",), "Before clipping."),
    ("Learning rate", ("learning_rate",), ""),
)
SAME = {  # figures of evaluations that belong to a training metric
    "objective/kl": "kl",
    "episode/return_mean": "return_mean",
    "episode/length_mean": "length_mean",
    "completions/mean_length": "length",
    "loss/total": "loss",
}
MEANING = {
    "reward": "mean score of held-out samples",
    "reward_std": "standard deviation of the scores",
    "kl": "nats per response to the reference",
    "distinct": "share of distinct responses",
    "length": "tokens per response",
    "accuracy": "share of right answers",
    "pair_accuracy": "share of pairs ranked rightly",
    "gold": "share that is both positive and grammatical; never shown to training",
    "gold_positive": "share the gold scorer calls positive; never shown to training",
    "gold_grammatical": "share the grammar accepts; never shown to training",
    "return_mean": "mean return of deterministic episodes",
    "return_std": "standard deviation of the returns",
    "length_mean": "mean length of those episodes",
    "loss": "mean loss on held-out data",
    "perplexity": "exp of the loss per token",
}
HEADLINES = ("reward", "gold_positive", "accuracy", "pair_accuracy", "return_mean", "kl", "loss")
OWN_PLACE = {"name", "exit_reason", "before", "after", "best", "seconds"}


def write_report(run_dir: Path) -> Path:
    """Write report.html from the files in a run's folder; returns its path. Missing files are
    skipped."""
    run_dir = Path(run_dir)
    summary = read_summary(run_dir)
    metrics, samples = read_lines(run_dir / "metrics.jsonl"), read_lines(run_dir / "samples.jsonl")
    config = run_dir / "config.yaml"
    main_panels, more_panels = panels(metrics, summary)
    text = page(
        title=" · ".join(str(summary[k]) for k in ("name", "env") if k in summary) or run_dir.name,
        status=str(summary.get("exit_reason", "still running")),
        lead=_lead(summary, metrics),
        cards=_cards(summary),
        figures=[draw(panel) for panel in main_panels],
        more_figures=[draw(panel) for panel in more_panels],
        sections={
            "Before and after": before_after(summary),
            "Samples": samples_block(samples),
            "Where the time went": _times(summary),
            "The run": table(["", ""], _facts(summary)),
            "Settings": settings_block(config.read_text("utf-8") if config.exists() else ""),
        },
    )
    path = run_dir / REPORT
    write_text(path, text)
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a log; a last line cut short by a crash is left out."""
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_number(row.get("step")):
            rows.append(row)
    return rows


def panels(metrics: list[dict[str, Any]], summary: Mapping) -> tuple[list[Panel], list[Panel]]:
    """(charts of the metrics in PANELS, charts of all others)."""
    shown, used = [], {"step"}
    for title, names, hint in PANELS:
        name = next((n for n in names if _points(metrics, n)), names[0])
        series = _with_evaluations(metrics, name, summary)
        used |= {name, f"eval/{SAME.get(name, name)}"}
        if series:
            shown.append(Panel(title, series, hint))
    for figure, meaning in MEANING.items():  # what only evaluations know
        dots = _evaluations(metrics, figure, summary)
        if f"eval/{figure}" not in used and len(dots) > 2:
            used.add(f"eval/{figure}")
            shown.append(Panel(figure, [Series("held out", dots, dots=True)], meaning))
    rewards = sorted({n for row in metrics for n in row if _is_reward_mean(n)})
    if len(rewards) > 1:
        lines = [Series(n.split("/")[1], _points(metrics, n)) for n in rewards]
        shown.insert(1, Panel("Rewards one by one", [line for line in lines if line.points]))
        used |= set(rewards)
    others = sorted({n for row in metrics for n in row} - used)
    more = [Panel(n, [Series(n, points)]) for n in others if (points := _points(metrics, n))]
    return shown, more


def _is_reward_mean(name: str) -> bool:
    return name.startswith("rewards/") and name.endswith("/mean")


def _points(metrics: list[dict[str, Any]], name: str) -> list[Point]:
    return [(row["step"], row[name]) for row in metrics if _is_number(row.get(name))]


def _is_number(value: object) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and math.isfinite(value)  # type: ignore[arg-type]


def _with_evaluations(metrics: list[dict[str, Any]], name: str, summary: Mapping) -> list[Series]:
    """The metric's line, and as dots its held-out evaluations before, during and after."""
    dots = _evaluations(metrics, SAME.get(name, name), summary)
    line = Series("training", _points(metrics, name), smooth=name != "learning_rate")
    found = [line, Series("held out", dots, dots=True)]
    return [series for series in found if series.points]


def _evaluations(metrics: list[dict[str, Any]], figure: str, summary: Mapping) -> list[Point]:
    dots = _points(metrics, f"eval/{figure}")
    before, after = (summary.get(part, {}).get(figure) for part in ("before", "after"))
    if _is_number(before):
        dots.insert(0, (0, before))
    if _is_number(after) and (not dots or dots[-1][0] != summary.get("steps")):
        dots.append((summary.get("steps", len(metrics)), after))
    return dots


def before_after(summary: Mapping) -> str:
    """The evaluations as a table, with what changed."""
    before, after, best = (summary.get(part, {}) for part in ("before", "after", "best"))
    names = [n for n in {**before, **after} if _is_number(before.get(n, after.get(n)))]
    rows = []
    for name in names:
        old, new = before.get(name), after.get(name)
        cells = [_figure(old), _figure(new), _change(old, new)]
        cells += [_figure(best.get(name))] if best else []
        rows.append(
            [
                f"<b>{escape(name)}</b>",
                *cells,
                f'<span class="note">{escape(MEANING.get(name, ""))}</span>',
            ]
        )
    best_column = [f"best (step {best.get('step')})"] if best else []
    return table(["", "before", "after", "change", *best_column, ""], rows) if rows else ""


def _change(old: Any, new: Any) -> str:
    if not _is_number(old) or not _is_number(new):
        return "–"
    return ("+" if new > old else "") + _figure(new - old)


def _figure(value: float | None) -> str:
    """An evaluation's figure; what is rounding error, such as the first KL, is 0."""
    return number(round(value, 4) if _is_number(value) else None)  # type: ignore[arg-type]


def before_after_lines(summary: Mapping) -> str:
    """The same table for a terminal."""
    before, after = summary.get("before", {}), summary.get("after", {})
    lines = [f"{'':>18}  {'before':>10}  {'after':>10}"]
    for name in {**before, **after}:
        cells = "  ".join(f"{_figure(part.get(name)):>10}" for part in (before, after))
        lines.append(f"{name:>18}  {cells}")
    return "\n".join(lines)


def _cards(summary: Mapping) -> list[tuple[str, str, str]]:
    """The figures that matter most: name, before, after."""
    before, after = summary.get("before", {}), summary.get("after", {})
    names = [n for n in HEADLINES if _is_number(after.get(n))][:4]
    return [(n, _figure(before.get(n)), _figure(after[n])) for n in names]


def _lead(summary: Mapping, metrics: list[dict[str, Any]]) -> str:
    """One line under the title: how long, how much, how fast, on what."""
    steps = summary.get("steps", metrics[-1]["step"] if metrics else 0)
    parts = [f"{number(steps)} iterations"]
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
            shown = number(value) if _is_number(value) else str(value)
            rows.append([escape(prefix + name), escape(shown)])
    return rows
