"""Samples of a report as HTML: texts of models and data beside their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from lmpg.runs.log_lines import SIDES, is_number
from lmpg.runs.report.charts import number
from lmpg.runs.report.history import spread
from lmpg.runs.report.shown_turns import conversation, notes, text_of
from lmpg.runs.report.token_colours import coloured, scales, sums, switch

LONGEST = 4000
"""Characters of a text that are shown, of its start and its end."""

Row = Mapping[str, Any]
Steps = Mapping[int, Sequence[Row]]


def samples_block(steps: Steps) -> str:
    """The first, the middle and the last step that has samples, those in between folded away.

    Where there are numbers of tokens, these three steps are ones that have them.
    """
    if not steps:
        return ""
    with_tokens = [s for s, rows in steps.items() if any("tokens" in row for row in rows)]
    main = spread(sorted(with_tokens or steps), 3)
    shown = {s: [r for r in steps[s] if "tokens" in r or not with_tokens] for s in main}
    scale = scales(row for rows in shown.values() for row in rows)
    span = _span(row for rows in steps.values() for row in rows)
    view = switch(scale) if scale else ""
    columns = "".join(_step(s, rows, span, scale) for s, rows in shown.items())
    html = f'<div class="view">{view}<div class="steps">{columns}</div></div>'
    rest = [s for s in sorted(steps) if s not in main]
    if not rest:
        return html
    inner = "".join(_step(s, steps[s], span, {}) for s in rest)
    label = "1 step" if len(rest) == 1 else f"{len(rest)} steps"
    return (
        f"{html}<details><summary>{label} in between</summary>"
        f'<div class="steps" style="margin-top:14px">{inner}</div></details>'
    )


def _step(step: int, rows: Sequence[Row], span: tuple[float, float], scale: Mapping) -> str:
    """A step's samples; those of one group, side by side."""
    parts = []
    for group, members in groupby(rows, key=lambda row: row.get("group")):
        cards = [_card(row, span, scale, group is None) for row in members_of(members)]
        if group is None:
            talks = any(row.get("turns") for row in rows)
            parts += [f'<div class="members">{"".join(cards)}</div>'] if talks else cards
        else:
            first = next(row for row in rows if row.get("group") == group)
            parts.append(
                f'<div class="group"><div class="text">{_prompt(first, scale)}</div>'
                f'<div class="members">{"".join(cards)}</div></div>'
            )
    return f"<section><h3>Step {step:,}</h3>{''.join(parts)}</section>"


def members_of(rows: Any) -> list[Row]:
    """The rows of a group, the best first."""
    found = list(rows)
    if found and "group" in found[0]:
        worst = float("-inf")
        found.sort(key=lambda r: -(r["score"] if is_number(r.get("score")) else worst))
    return found


def _card(row: Row, span: tuple[float, float], scale: Mapping, with_prompt: bool) -> str:
    """One sample: its texts, and its scores beside them."""
    if SIDES[0] in row:
        return _pair(row, span, scale)
    prompt = _prompt(row, scale) if with_prompt else ""
    tokens = row.get("tokens")
    if row.get("turns"):
        text = conversation(row, scale)
    elif tokens and scale:
        text = coloured(tokens, scale, bool(row.get("finished")))
    else:
        text = escape(_cut(text_of(row.get("completion"))))
    said = [f"{name} {number(x)}" for name, x in _parts(row).items()]
    if row.get("turns"):
        said += notes(row)
    elif row.get("finished") is False:
        said.append("cut off")
    if "label" in row:
        said.insert(0, str(row["label"]))
    if tokens:
        said += sums(tokens)
    chips = _chip(row.get("score"), span, said)
    return f'<div class="sample"><div class="text">{prompt}{text}</div>{chips}</div>'


def _pair(row: Row, span: tuple[float, float], scale: Mapping) -> str:
    """A chosen and a rejected text, side by side."""
    sides = []
    for side in (name for name in SIDES if name in row):
        tokens = row.get("tokens", {}).get(side, {})
        known = bool(tokens and scale)
        text = coloured(tokens, scale, False) if known else escape(_cut(text_of(row[side])))
        chips = _chip(row.get(f"score_{side}"), span, sums(tokens))
        sides.append(
            f'<div class="sample"><div class="text"><b class="muted">{side}</b>\n'
            f"{text}</div>{chips}</div>"
        )
    margin = row.get("margin")
    verdict = f'<p class="muted">margin {number(margin)}</p>' if is_number(margin) else ""
    return (
        f'<div class="group"><div class="text">{_prompt(row, scale)}</div>{verdict}'
        f'<div class="members">{"".join(sides)}</div></div>'
    )


def _prompt(row: Row, scale: Mapping) -> str:
    """The prompt, as the model reads it where tokens are shown."""
    read = row.get("tokens", {}).get("prompt") if scale else None
    text = text_of(row.get("prompt")) if read is None else read
    return f'<span class="prompt">{escape(_cut(text))}</span>'


def _parts(row: Row) -> dict[str, float | None]:
    """The parts of a score that say more than it does."""
    rewards = row.get("rewards", {})
    parts = dict(rewards) if len(rewards) > 1 else {}
    if "processed_score" in row:
        parts["learned from"] = row["processed_score"]
    return parts


def _chip(score: Any, span: tuple[float, float], notes: Sequence[str]) -> str:
    known = is_number(score)
    share = (score - span[0]) / (span[1] - span[0]) if known and span[1] > span[0] else 0.0
    said = f"{round(score, 2) + 0.0:.2f}".replace("-", "−") if known else "no score"
    below = "".join(f"<small>{escape(note)}</small>" for note in notes)
    chip = f'<div class="score" style="--share:{0.45 * share:.2f}"><b>{said}</b></div>'
    return f'<div class="scores">{chip}{below}</div>'


def _span(rows: Any) -> tuple[float, float]:
    """The lowest and the highest score."""
    keys = ("score", *(f"score_{side}" for side in SIDES))
    scores = [row[key] for row in rows for key in keys if is_number(row.get(key))]
    return (min(scores), max(scores)) if scores else (0.0, 0.0)


def _cut(text: str) -> str:
    """A text of a bounded length."""
    if len(text) <= LONGEST:
        return text
    left_out = len(text) - LONGEST
    half = LONGEST // 2
    return f"{text[:half]} … {left_out:,} characters left out … {text[-half:]}"
