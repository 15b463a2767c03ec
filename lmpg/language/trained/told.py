"""An evaluation in words for the terminal, and as JSON for a file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from lmpg import __version__
from lmpg.language.data.chat import as_text
from lmpg.language.rollouts.completed import turns_shown
from lmpg.language.rollouts.scored_completions import ScoredCompletions
from lmpg.language.trained.measured import Evaluated, Measured, shown_figures
from lmpg.runs.printable import printable

NARROWEST = 60
SHOWN_PER_PROMPT = 8
"""Responses to a prompt in the table of samples."""


def lines(found: Evaluated) -> list[str]:
    """The figures with their intervals, differences where there are some, and a table of samples.
    What steers a terminal is spelt out."""
    first, settings = found.first, found.settings
    count = len(first.sampled.prompts) // first.sampled.samples
    told = [f"{first.model}: {count} prompts, {settings.samples} responses to each"]
    told += _compared(found) if found.other else _figures(first)
    passes = f"a response passes with a score of {settings.pass_score:g} or more (--pass-score)"
    told += [passes, *_missing(first), *(_missing(found.other) if found.other else [])]
    if settings.show:
        told += ["", *_samples(first, settings.show)]
    return [printable(line) for line in told]


def shown_name(figure: str) -> str:
    """A figure's name to read: pass@4 for pass_at_4."""
    return figure.replace("pass_at_", "pass@")


def _figures(found: Measured) -> Iterator[str]:
    figures, width = _with_width(found)
    yield f"{'':>{width}}  {'mean':>9}   95 % interval"
    for name in figures:
        ends = found.intervals.get(name)
        interval = f"   {_number(ends[0])} … {_number(ends[1])}" if ends else ""
        yield f"{shown_name(name):>{width}}  {_number(found.metrics[name]):>9}{interval}"


def _with_width(found: Measured) -> tuple[list[str], int]:
    """The figures to show, and how wide the column of their names is."""
    figures = shown_figures(found.sampled.samples, list(found.metrics))
    return figures, max([16, *(len(shown_name(name)) for name in figures)])


def _compared(found: Evaluated) -> Iterator[str]:
    first, other = found.first, found.other
    assert other is not None
    names = [_short(model.model, 14) for model in (first, other)]
    figures, width = _with_width(first)
    yield (
        f"{'':>{width}}  {names[0]:>14}  {names[1]:>14}  {'difference':>10}   "
        "95 % interval, paired by prompt"
    )
    for name in figures:
        cells = f"{_number(first.metrics[name]):>14}  {_number(other.metrics.get(name)):>14}"
        if name not in found.differences:
            yield f"{shown_name(name):>{width}}  {cells}"
            continue
        mean, low, high = found.differences[name]
        clear = "" if low <= 0 <= high else "  *"
        ends = f"{low:+.4f} … {high:+.4f}"
        yield f"{shown_name(name):>{width}}  {cells}  {mean:>+10.4f}   {ends}{clear}"
    yield "* the interval leaves out 0"


def _missing(found: Measured) -> list[str]:
    """What the rewards said where responses have no score."""
    messages = list(dict.fromkeys(found.sampled.messages))[:3]
    return [f"{found.model}: {text}" for text in messages]


def _samples(found: Measured, most: int) -> Iterator[str]:
    """The responses to the first prompts, a line each."""
    width = max(NARROWEST, shutil.get_terminal_size((100, 24)).columns)
    sampled, each = found.sampled, found.sampled.samples
    yield f"{'score':>8}  {'tokens':>6}  "
    for start in range(0, min(len(sampled.texts), most * each), each):
        prompt = _one_line(as_text(sampled.prompts[start].prompt))
        yield f"{'prompt':>16}  {_short(prompt, width - 18)}"
        if found.greedy is not None:
            yield _sample(found.greedy, start // each, width, " (greedy)")
        for i in range(start, start + min(each, SHOWN_PER_PROMPT)):
            yield _sample(sampled, i, width)
        if each > SHOWN_PER_PROMPT:
            yield f"{'':>18}{each - SHOWN_PER_PROMPT} more in the JSON file"


def _sample(scored: ScoredCompletions, i: int, width: int, note: str = "") -> str:
    score = scored.scores[i]
    shown = f"{'none':>8}" if score is None else f"{score:8.3g}"
    tokens = f"{scored.lengths[i]}{'' if scored.finished[i] else '+'}"
    text = _one_line(scored.texts[i]) + note
    cut = text if len(text) <= width - 18 else text[: width - 19 - len(note)] + "…" + note
    return f"{shown}  {tokens:>6}  {cut}"


def _one_line(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", " ")


def _short(text: str, most: int) -> str:
    """The end of a long text, as prompts differ there, and paths."""
    return text if len(text) <= most else "…" + text[1 - most :]


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.4f}"


def as_json(found: Evaluated) -> dict[str, Any]:
    """All that was measured, every response included, for a file."""
    settings = found.settings
    told = {
        "model": found.first.model,
        "settings": settings.model_dump(mode="json"),
        "lmpg": __version__,
        **_measured(found.first),
    }
    if found.other is not None:
        told["compared"] = {"model": found.other.model, **_measured(found.other)}
        told["differences"] = {
            name: {"mean": mean, "low": low, "high": high}
            for name, (mean, low, high) in found.differences.items()
        }
    return told


def _measured(found: Measured) -> dict[str, Any]:
    intervals = {name: list(ends) for name, ends in found.intervals.items()}
    rows = list(_rows(found))
    return {"metrics": found.metrics, "intervals": intervals, "prompts": len(rows), "rows": rows}


def _rows(found: Measured) -> Iterator[dict[str, Any]]:
    """A prompt with its responses."""
    sampled, each = found.sampled, found.sampled.samples
    for p in range(len(sampled.texts) // each):
        of_prompt = range(p * each, (p + 1) * each)
        row: dict[str, Any] = {"prompt": sampled.prompts[p * each].prompt}
        row["responses"] = [_response(sampled, i) for i in of_prompt]
        if found.greedy is not None:
            row["greedy"] = _response(found.greedy, p)
        yield row


def _response(scored: ScoredCompletions, i: int) -> dict[str, Any]:
    parts = {name: scores[i] for name, scores in scored.by_reward.items()}
    return {
        "text": scored.texts[i],
        "score": scored.scores[i],
        **({"rewards": parts} if len(parts) > 1 else {}),
        "length": scored.lengths[i],
        "ended": scored.finished[i],
        **(turns_shown(scored.talks[i]) if scored.talks else {}),
    }
