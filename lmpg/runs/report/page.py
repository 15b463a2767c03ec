"""HTML of report.html: its layout and tables, without knowledge of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from lmpg.runs.report.style import STYLE


def page(
    *,
    title: str,
    status: str,
    lead: str,
    warnings: Sequence[str],
    cards: Sequence[tuple[str, str, str]],
    figures: Sequence[Sequence[str]],
    sections: Mapping[str, str],
) -> str:
    """The whole document. Figures and sections are HTML, everything else is text.

    figures: of what matters most, of what else is known, and of the rest, which is folded away.
    sections: "Before and after" stands before the curves, "Samples" after what matters most.
    """
    blocks = {name: f"<h2>{escape(name)}</h2>{html}" for name, html in sections.items() if html}
    before, samples = (blocks.pop(name, "") for name in ("Before and after", "Samples"))
    kind = "finished" if status == "finished" else ""
    said = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    said = f'<ul class="warnings">{said}</ul>' if said else ""
    first, further = _curves(*figures)
    return document(
        title,
        f'<header><h1>{escape(title)}</h1><span class="status {kind}">{escape(status)}</span>'
        f'<p class="lead">{escape(lead)}</p></header>'
        f'{said}<div class="cards">{"".join(_card(*card) for card in cards)}</div>'
        f"{before}<h2>Learning curves</h2>{first}{samples}"
        f"{further}{''.join(blocks.values())}",
    )


def document(title: str, body: str) -> str:
    """A page of its own, in the report's style; `body` is HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} – lmpg</title><style>{STYLE}</style></head><body><main>"
        f"{body}</main></body></html>\n"
    )


def _curves(first: Sequence[str], others: Sequence[str], more: Sequence[str]) -> tuple[str, str]:
    """The figures of what matters most, and all others."""
    if not first:
        return '<p class="muted">No step has been logged yet.</p>', ""
    main = f'<div class="grid-of-figures first">{"".join(first)}</div>'
    rest = f'<div class="grid-of-figures">{"".join(others)}</div>' if others else ""
    if more:
        rest += (
            f"<details><summary>{len(more)} more metrics</summary>"
            f'<div class="grid-of-figures" style="margin-top:14px">{"".join(more)}</div></details>'
        )
    return main, f"<h2>More curves</h2>{rest}" if rest else ""


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
