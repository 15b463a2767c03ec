"""HTML of report.html: layout, style, tables and samples, without knowledge of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

SAMPLES_PER_STEP = 6

STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --text: #1d1f23; --muted: #6b7078;
  --line: #e4e5e7; --c1: #2b62c4; --c2: #d1661c; --c3: #23875b; --c4: #9a3f9c; --c5: #8a6d1a;
  --good: #1f7a4d; --warn: #b3541e; }
@media (prefers-color-scheme: dark) { :root { --back: #15171a; --card: #1d2024; --text: #e7e8ea;
  --muted: #989da6; --line: #32363c; --c1: #7aa7f5; --c2: #f0a066; --c3: #6cc79b; --c4: #d490d6;
  --c5: #d9bf6b; --good: #6cc79b; --warn: #f0a066; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; margin: 0; display: inline-block; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 36px 0 12px; }
.status { margin-left: 12px; padding: 2px 10px; border-radius: 999px; font-size: 13px;
  border: 1px solid currentColor; color: var(--warn); vertical-align: 5px; }
.status.finished { color: var(--good); }
.lead, .muted { color: var(--muted); } .lead { margin: 4px 0 20px; }
.cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); }
.card, figure, .sample { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.card { padding: 14px 18px; } .card .name { color: var(--muted); font-size: 13px; }
.card .after { font-size: 30px; font-weight: 650; letter-spacing: -.02em; line-height: 1.2; }
.card .before { color: var(--muted); font-size: 20px; }
.grid-of-figures { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); }
figure { margin: 0; padding: 10px 10px 4px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 8px;
  padding: 0 4px 4px; font-size: 13px; overflow-wrap: anywhere; }
figcaption span { color: var(--muted); white-space: nowrap; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 10px; fill: var(--muted); font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke: var(--c); }
polyline.raw { stroke-width: 1; opacity: .35; }
circle { fill: var(--c); stroke: var(--card); stroke-width: 1; }
.c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); }
.c5 { --c: var(--c5); }
i { display: inline-block; width: 12px; height: 3px; background: var(--c); margin: 0 4px 3px 8px; }
i.dot { width: 7px; height: 7px; border-radius: 50%; margin-bottom: 1px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--muted); font-weight: 500; font-size: 13px; }
td.num, th.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll { overflow-x: auto; }
@media (max-width: 640px) { .note { display: none; } }
.times td { border: 0; padding: 3px 14px 3px 0; } .times .bar { width: 70%; }
.bar div { background: var(--c1); height: 12px; border-radius: 3px; margin-top: 6px;
  min-width: 2px; }
.columns { display: grid; gap: 14px 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); align-items: start; }
.columns h3 { font-size: 14px; margin: 0 0 8px; color: var(--muted); font-weight: 600; }
.sample { padding: 8px 14px; margin-bottom: 8px; display: flex; gap: 14px; }
.sample .text { flex: 1; white-space: pre-wrap; overflow-wrap: anywhere; }
.sample .prompt { color: var(--muted); }
.score { font-variant-numeric: tabular-nums; font-weight: 600; font-size: 13px; height: fit-content;
  padding: 1px 8px; border-radius: 6px; border: 1px solid var(--line); position: relative;
  overflow: hidden; }
.score::before { content: ""; position: absolute; inset: 0; background: var(--c1);
  opacity: var(--share); }
.score b { position: relative; font-weight: inherit; }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--muted); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 18px; overflow-x: auto; font-size: 13px; line-height: 1.45; }
"""


def page(
    *,
    title: str,
    status: str,
    lead: str,
    cards: Sequence[tuple[str, str, str]],
    figures: Sequence[str],
    more_figures: Sequence[str],
    sections: Mapping[str, str],
) -> str:
    """The whole document. Figures and sections are HTML, everything else is text."""
    curves = f'<div class="grid-of-figures">{"".join(figures)}</div>'
    if not figures:
        curves = '<p class="muted">No step has been logged yet.</p>'
    if more_figures:
        curves += (
            f"<details><summary>{len(more_figures)} more metrics</summary>"
            f'<div class="grid-of-figures" style="margin-top:14px">{"".join(more_figures)}</div>'
            "</details>"
        )
    blocks = [f"<h2>{escape(name)}</h2>{html}" for name, html in sections.items() if html]
    first = blocks.pop(0) if blocks and "Before and after" in blocks[0] else ""
    kind = "finished" if status == "finished" else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} – lmpg</title><style>{STYLE}</style></head><body><main>"
        f'<header><h1>{escape(title)}</h1><span class="status {kind}">{escape(status)}</span>'
        f'<p class="lead">{escape(lead)}</p></header>'
        f'<div class="cards">{"".join(_card(*card) for card in cards)}</div>'
        f"{first}<h2>Learning curves</h2>{curves}{''.join(blocks)}</main></body></html>\n"
    )


def _card(name: str, before: str, after: str) -> str:
    old = f'<span class="before">{escape(before)} → </span>' if before != "–" else ""
    return (
        f'<div class="card"><div class="name">{escape(name)}</div>'
        f'<div class="after">{old}{escape(after)}</div></div>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of HTML cells; all but the first and the last column hold numbers."""
    if not rows:
        return ""
    kinds = ["", *["num"] * (len(head) - 2), ""]
    cells = [
        "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, row)) for row in rows
    ]
    names = "".join(f'<th class="{kind}">{escape(name)}</th>' for kind, name in zip(kinds, head))
    header = f"<tr>{names}</tr>" if any(head) else ""
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="scroll"><table>{header}{body}</table></div>'


def settings_block(text: str) -> str:
    """The resolved settings, folded away."""
    if not text:
        return ""
    return f"<details><summary>config.yaml</summary><pre>{escape(text)}</pre></details>"


def samples_block(rows: Sequence[Mapping[str, Any]]) -> str:
    """First and last logged step side by side, those in between folded away."""
    steps = sorted({row["step"] for row in rows if "step" in row})
    if not steps:
        return ""
    scores = [row["score"] for row in rows if isinstance(row.get("score"), int | float)]
    span = (min(scores), max(scores)) if scores else (0.0, 0.0)

    def column(step: int) -> str:
        chosen = [row for row in rows if row.get("step") == step][:SAMPLES_PER_STEP]
        return f"<div><h3>Step {step}</h3>{''.join(_sample(row, span) for row in chosen)}</div>"

    ends = "".join(column(step) for step in dict.fromkeys([steps[0], steps[-1]]))
    ends = f'<div class="columns">{ends}</div>'
    between = steps[1:-1]
    if not between:
        return ends
    inner = "".join(column(step) for step in between)
    label = "1 step" if len(between) == 1 else f"{len(between)} steps"
    return (
        f"{ends}<details><summary>{label} in between</summary>"
        f'<div class="columns" style="margin-top:14px">{inner}</div></details>'
    )


def _sample(row: Mapping[str, Any], span: tuple[float, float]) -> str:
    score = row.get("score")
    known = isinstance(score, int | float)
    share = (score - span[0]) / (span[1] - span[0]) if known and span[1] > span[0] else 0.0  # type: ignore[operator]
    chip = f"{score:.2f}".replace("-", "−") if known else "no score"
    prompt, completion = escape(_text(row.get("prompt"))), escape(_text(row.get("completion")))
    return (
        '<div class="sample"><div class="text">'
        f'<span class="prompt">{prompt}</span>{completion}</div>'
        f'<div class="score" style="--share:{0.45 * share:.2f}"><b>{chip}</b></div></div>'
    )


def _text(value: Any) -> str:
    """Text as it is, chat messages as `role: content` lines."""
    if isinstance(value, list):
        return "".join(f"{m.get('role', '?')}: {m.get('content', '')}\n" for m in value)
    return "" if value is None else str(value)
