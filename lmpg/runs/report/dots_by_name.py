"""A chart with a line for each name: a dot for its value, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from lmpg.runs.report.charts import number, ticks

WIDTH, LEFT, RIGHT, LINE, TOP, BOTTOM = 520, 200, 14, 19, 6, 20


class Dot(NamedTuple):
    """A value with its standard error, and what of its kind it is (colours 1 … 5)."""

    name: str
    value: float
    error: float = 0.0
    kind: int = 1


def draw_dots(
    title: str, dots: Sequence[Dot], hint: str, unit: str = "", logarithmic: bool = False
) -> str:
    """The chart as an HTML figure. Names without a finite value have an empty line; whiskers reach
    one standard error to either side, within the drawing."""
    shown = [dot for dot in dots if math.isfinite(dot.value) and (dot.value > 0 or not logarithmic)]
    low, high = _range([x for dot in shown for x in _ends(dot)], logarithmic)
    width, height = WIDTH - LEFT - RIGHT, LINE * len(dots)

    def place(value: float) -> float:
        share = (_scaled(value, logarithmic) - low) / (high - low)
        return LEFT + min(1.0, max(0.0, share)) * width

    parts = []
    for tick in _ticks(low, high, logarithmic):
        x = f"{place(tick):.1f}"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{TOP + height}"/>')
        text = f'<text x="{x}" y="{TOP + height + 14}" text-anchor="middle">{number(tick)}</text>'
        parts.append(text)
    for i, dot in enumerate(dots):
        y = f"{TOP + LINE * (i + 0.5):.1f}"
        name = escape(dot.name)
        parts.append(f'<text x="{LEFT - 8}" y="{y}" dy="3.5" text-anchor="end">{name}</text>')
        if dot in shown:
            x0, x1 = (f"{place(x):.1f}" for x in _ends(dot))
            said = f"{name}: {number(dot.value)} ± {number(dot.error)}{escape(unit)}"
            parts.append(
                f'<polyline class="c{dot.kind}" points="{x0},{y} {x1},{y}"/>'
                f'<circle class="c{dot.kind}" cx="{place(dot.value):.1f}" cy="{y}" r="4">'
                f"<title>{said}</title></circle>"
            )
    box = f"0 0 {WIDTH} {TOP + height + BOTTOM}"
    return (
        f"<figure><figcaption><b>{escape(title)}</b><span>{escape(unit)}</span></figcaption>"
        f'<svg viewBox="{box}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f"<p>{escape(hint)}</p></figure>"
    )


def _ends(dot: Dot) -> tuple[float, float]:
    error = dot.error if math.isfinite(dot.error) else 0.0
    return dot.value - error, dot.value + error


def _scaled(value: float, logarithmic: bool) -> float:
    if not logarithmic:
        return value
    return math.log10(value) if value > 0 else -math.inf


def _range(values: list[float], logarithmic: bool) -> tuple[float, float]:
    """The ends of the axis, in its scale."""
    known = [x for x in (_scaled(v, logarithmic) for v in values) if math.isfinite(x)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    if not logarithmic:
        low = min(0.0, low)
    margin = 0.05 * (high - low) or 0.5
    return low - margin * logarithmic, high + margin


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    if not logarithmic:
        return ticks(low, high, 5)
    found = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    inside = [x for x in found if low <= math.log10(x) <= high]
    return inside if len(inside) <= 7 else [x for x in inside if f"{x:e}".startswith("1.")]
