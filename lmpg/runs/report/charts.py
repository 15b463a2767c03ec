"""Line charts as inline SVG: colours come from the page's CSS, so they suit light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from lmpg.runs.log_lines import is_number
from lmpg.runs.report.history import Point, mean_point

WIDTH, HEIGHT = 340, 168
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 24
ROOM = 7
"""Characters that fit beside the vertical axis; longer numbers are narrowed."""
MAX_POINTS, MAX_DOTS = 400, 60
MIN_POINTS_TO_SMOOTH = 30
COLOURS = 8


@dataclass(frozen=True)
class Series:
    """Points (step, value) with ascending steps, drawn as a line, or as dots where they are few.

    last: the newest point, where the others are means. band: (low, high) around each point.
    """

    label: str
    points: list[Point]
    dots: bool = False
    smooth: bool = True
    last: Point | None = None
    band: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """One chart: what it is called, what it shows, what that means, when to worry, its unit, and
    what stands along it."""

    title: str
    series: list[Series] = field(default_factory=list)
    hint: str = ""
    worry: str = ""
    unit: str = ""
    along: str = "step"


def draw(panel: Panel) -> str:
    """The panel as an HTML figure; all its values are finite."""
    everything = [point for series in panel.series for point in series.points]
    ends = [y for series in panel.series for pair in series.band for y in pair]
    axes = _Axes([x for x, _ in everything], [*(y for _, y in everything), *ends])
    colours = [i % COLOURS + 1 for i in range(len(panel.series))]
    marks = [_marks(x, i, axes, panel.along) for x, i in zip(panel.series, colours)]
    if [series.dots for series in panel.series] == [True]:  # nothing else connects them
        marks.insert(0, _line(panel.series[0].points, 1, axes))
    unit = f" <small>{escape(panel.unit)}</small>" if panel.unit else ""
    words = f"<p>{escape(panel.hint)}</p>" if panel.hint else ""
    worry = (
        f'<p class="worry"><b>When to worry:</b> {escape(panel.worry)}</p>' if panel.worry else ""
    )
    return (
        f"<figure><figcaption><b>{escape(panel.title)}{unit}</b>{_legend(panel)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(panel.title)}">'
        f"{axes.grid()}{''.join(marks)}</svg>{words}{worry}</figure>"
    )


def number(value: float | None) -> str:
    """A value to read: three decimals, fewer for large numbers, more for small ones."""
    if value is None:
        return "–"
    size = abs(value)
    if value == int(value) and size < 1e12:
        text = f"{int(value):,}"
    elif size >= 1e6 or size < 1e-4:
        text = f"{value:.2e}"
    else:
        text = f"{value:,.{1 if size >= 100 else 2 if size >= 10 else 3 if size >= 0.01 else 5}f}"
    return text.replace("-", "−")


def figure(value: float | None) -> str:
    """An evaluation's figure; what is rounding error, such as the first KL, is 0."""
    return number(round(value, 4) if is_number(value) else None)  # type: ignore[arg-type]


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` points: means over stretches of neighbours."""
    size = math.ceil(len(points) / most)
    chunks = [points[i : i + size] for i in range(0, len(points), size)] if size > 1 else []
    return [mean_point(chunk) for chunk in chunks] or list(points)


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Centred moving average over about a fifteenth of the points."""
    half = max(1, len(points) // 30)
    windows = [points[max(i - half, 0) : i + half + 1] for i in range(len(points))]
    return [(x, mean_point(window)[1]) for (x, _), window in zip(points, windows)]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between `low` and `high`, at most about `count`."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


class _Axes:
    """Maps values to places in the drawing."""

    def __init__(self, xs: list[float], ys: list[float]) -> None:
        self.x0, self.x1 = min(xs), max(xs)
        if self.x0 == self.x1:
            self.x0, self.x1 = self.x0 - 0.5, self.x1 + 0.5
        low, high = min(ys), max(ys)
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        self.y0 = low - margin if low < 0 or low > margin else 0.0
        self.y1 = high + margin

    def x(self, value: float) -> float:
        """Horizontal place."""
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Vertical place."""
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> str:
        """Lines and numbers of both axes."""
        parts = []
        for value in ticks(self.y0, self.y1, 4):
            y = f"{self.y(value):.1f}"
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            text = _tick(value, max(abs(self.y0), abs(self.y1)))
            fit = f' textLength="{LEFT - 6}" lengthAdjust="spacingAndGlyphs"' * (len(text) > ROOM)
            parts.append(
                f'<text x="{LEFT - 6}" y="{y}" dy="3.5" text-anchor="end"{fit}>{text}</text>'
            )
        for value in ticks(self.x0, self.x1, 4):
            parts.append(
                f'<text x="{self.x(value):.1f}" y="{HEIGHT - 7}" text-anchor="middle">'
                f"{_tick(value, abs(self.x1))}</text>"
            )
        return "".join(parts)


def _marks(series: Series, index: int, axes: _Axes, along: str) -> str:
    if series.dots:
        dots = thinned(series.points, MAX_DOTS)
        return "".join(_dot(point, f"{series.label}, {along}", index, axes) for point in dots)
    points = thinned(series.points)
    line = _band(series, index, axes) + _line(points, index, axes)
    if len(points) == 1:
        return _dot(points[0], f"{series.label}, {along}", index, axes)
    if series.smooth and len(points) >= MIN_POINTS_TO_SMOOTH:
        line = _band(series, index, axes) + _line(points, index, axes, "raw")
        line += _line(smoothed(points), index, axes)
    return line


def _dot(point: Point, label: str, index: int, axes: _Axes) -> str:
    x, y = point
    return (
        f'<circle class="c{index}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3.2">'
        f"<title>{escape(label)} {number(x)}: {number(y)}</title></circle>"
    )


def _line(points: list[Point], index: int, axes: _Axes, kind: str = "") -> str:
    places = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
    return f'<polyline class="c{index} {kind}" points="{places}"/>'


def _band(series: Series, index: int, axes: _Axes) -> str:
    """What lies between the ends of the band, as thinned and smoothed as the line."""
    if all(low == high for low, high in series.band):
        return ""
    edges = []
    for side in (0, 1):
        edge = [(x, ends[side]) for (x, _), ends in zip(series.points, series.band)]
        edge = thinned(edge)
        smooth = series.smooth and len(edge) >= MIN_POINTS_TO_SMOOTH
        edges.append(smoothed(edge) if smooth else edge)
    around = [*edges[0], *reversed(edges[1])]
    places = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in around)
    return f'<polygon class="c{index} band" points="{places}"/>'


def _legend(panel: Panel) -> str:
    """The last value, or a key where there are several lines."""
    if len(panel.series) == 1:
        series = panel.series[0]
        return f"<span>{number((series.last or series.points[-1])[1])}</span>"
    keys = [
        f'<i class="c{i % COLOURS + 1}{" dot" if s.dots else ""}"></i>{escape(s.label)} '
        for i, s in enumerate(panel.series)
    ]
    return f"<span>{''.join(keys)}</span>"


def _tick(value: float, largest: float) -> str:
    """A number at an axis that goes up to `largest`."""
    if value and (largest >= 1e5 or largest < 2e-3):
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
    return f"{value:,.10g}".replace("-", "−")
