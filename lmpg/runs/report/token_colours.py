"""The token view: each token of a response in the colour of a number, the numbers on hover.

Nothing runs: radio buttons and style sheets switch the colours. A token carries one number from
−1 to 1 for each quantity, scaled over all tokens of the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from lmpg.runs.log_lines import SIDES
from lmpg.runs.report.charts import number

VIEWS = {  # key: title, what full colour on either side says
    "advantage": ("Advantage", "better than expected", "worse than expected"),
    "value": ("Value", "the critic expects much", "the critic expects little"),
    "log_ratio": ("Log-ratio to the reference", "likelier than to the reference", "less likely"),
    "kl": ("KL to the reference", "more likely than at the start", "less likely"),
    "entropy": ("Entropy", "undecided", ""),
    "ratio": ("Ratio", "the update raised it", "the update lowered it"),
}
HOVER = ("advantage", "value", "reward", "log_ratio", "kl", "entropy", "ratio", "logprob")
NAMES = {"kl": "KL", "logprob": "log π", "log_ratio": "log π/π_ref"}
LARGE = 0.95
"""The share of tokens that are within the scale; a few outliers would make all others pale."""
UNFINISHED = "▫"

Tokens = Mapping[str, Any]


def scales(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The number that gets full colour, for each quantity that the rows have."""
    sizes: dict[str, list[float]] = {}
    for row in rows:
        for key in VIEWS:
            for tokens in tokens_of(row):
                known = [abs(x) for x in _strengths(tokens, key) if x is not None]
                sizes.setdefault(key, []).extend(known)
    found = {}
    for key, values in sizes.items():
        if values:
            found[key] = sorted(values)[int(LARGE * (len(values) - 1))] or max(values) or 1.0
    return found


def tokens_of(row: Mapping[str, Any]) -> list[Tokens]:
    """The tokens of a row's response, or of both answers of a pair; none where it has none."""
    tokens = row.get("tokens") or {}
    return [tokens[side] for side in SIDES if side in tokens] or [tokens]


def sums(tokens: Tokens) -> list[str]:
    """What the numbers of all tokens add up to, where that is known."""
    return [f"Σ {NAMES[key]} {number(x)}" for key, x in tokens.get("sums", {}).items()]


def switch(scale: Mapping[str, float]) -> str:
    """Radio buttons for the quantities, to stand before what they colour, and what colours say."""
    first = next(iter(scale))
    buttons = [
        f'<input type="radio" name="view" id="view-{key}"{" checked" if key == first else ""}>'
        f'<label for="view-{key}">{VIEWS[key][0]}</label>'
        for key in scale
    ]
    legends = [_legend(key, size) for key, size in scale.items()]
    return f"{''.join(buttons)}<div class='legends'>{''.join(legends)}</div>"


def _legend(key: str, size: float) -> str:
    """What full colour is, in the quantity's own numbers."""
    _, more, less = VIEWS[key]
    ends = (math.exp(-size), math.exp(size)) if key == "ratio" else (-size, size)
    low, high = (f"{x:.2g}".replace("-", "−") for x in ends)
    low = f"<t-k style='--x:-1'>{low}</t-k> {less} · " if less else ""
    return f"<p class='legend {key}'>{low}<t-k style='--x:1'>{high}</t-k> {more}</p>"


def coloured(tokens: Tokens, scale: Mapping[str, float], finished: bool) -> str:
    """A response's tokens as HTML; the token that ends it stands in a frame."""
    marked = marks(tokens, scale)
    if finished and marked:
        marked[-1] = framed(marked[-1])
    return "".join(with_gap(tokens, marked))


def marks(tokens: Tokens, scale: Mapping[str, float]) -> list[str]:
    """Each kept token as HTML, with its colours and the numbers that a hover shows."""
    strengths = {key: _strengths(tokens, key) for key in scale}
    parts = []
    for t, text in enumerate(tokens.get("texts", [])):
        style = ";".join(
            f"--{key}:{max(-1.0, min(1.0, strength / scale[key])):.2f}"
            for key, values in strengths.items()
            for strength in values[t : t + 1]
            if strength is not None
        )
        hover = escape(_numbers(tokens, t))
        parts.append(f'<t-k style="{style}" data-n="{hover}">{visible(text)}</t-k>')
    return parts


def framed(mark: str) -> str:
    """The same token in a frame."""
    return mark.replace("<t-k ", '<t-k class="end" ', 1)


def with_gap(tokens: Tokens, parts: list[str]) -> list[str]:
    """The parts of the kept tokens, and between their halves how many were left out."""
    left_out = tokens.get("length", len(parts)) - len(parts)
    if left_out <= 0:
        return parts
    half = len(parts) // 2
    return [*parts[:half], f"<i-n> … {left_out:,} tokens left out … </i-n>", *parts[half:]]


def visible(text: Any) -> str:
    """A token's text; line breaks and what writes nothing by itself are shown."""
    return escape(str(text) or UNFINISHED).replace("\n", "↵\n")


def _numbers(tokens: Tokens, t: int) -> str:
    """All that is known of token t, in a line."""
    parts = [repr(tokens["texts"][t])]
    for key in HOVER:
        values = tokens.get(key)
        if isinstance(values, list) and t < len(values):
            parts.append(f"{NAMES.get(key, key)} {number(values[t])}")
    return " · ".join(parts)


def _strengths(tokens: Tokens, key: str) -> list[float | None]:
    """What colours are taken from: the numbers, of ratios their logarithms."""
    values = tokens.get(key)
    known = values if isinstance(values, list) else []
    if key == "ratio":
        return [None if x is None or x <= 0 else math.log(x) for x in known]
    return known
