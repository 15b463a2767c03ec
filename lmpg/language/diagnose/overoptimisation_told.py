"""A run's score and its gold score over the KL: lines for the terminal, JSON, a page with a
picture."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from lmpg import __version__
from lmpg.language.diagnose.overoptimisation import Followed, Point
from lmpg.runs.printable import printable
from lmpg.runs.report.charts import Panel, Series, draw, number
from lmpg.runs.report.page import document, table

HEAD = ("step", "KL (nats)", "score", "gold", "responses")
CURVE_POINTS = 60


def lines(found: Followed) -> list[str]:
    """The points by KL, and what they say."""
    told = [f"{found.run}: {found.source}", "", "".join(f"{x:>18}" for x in HEAD)]
    told += ["".join(f"{x:>18}" for x in _cells(point)) for point in found.points]
    return [printable(line) for line in [*told, "", *_verdict(found)]]


def as_json(found: Followed) -> dict[str, Any]:
    """The points, the fit, and what they say."""
    curve = found.curve
    return {
        "run": str(found.run),
        "gold": found.gold,
        "source": found.source,
        "lmpg": __version__,
        "points": [point._asdict() for point in found.points],
        "fit": None if curve is None else {**curve._asdict(), "peak": curve.peak},
        "best": found.best._asdict(),
        "overoptimised": found.fell,
        "said": _verdict(found),
    }


def page(found: Followed) -> str:
    """A page of its own: score and gold over √KL, and the table."""
    title = f"{found.run.name}: the score and the gold score"
    distances = [math.sqrt(max(0.0, point.kl)) for point in found.points]
    golds = [Series("gold", list(zip(distances, [x.gold for x in found.points])), dots=True)]
    if found.curve is not None:
        ends = distances[0], distances[-1]
        steps = [ends[0] + (ends[1] - ends[0]) * i / CURVE_POINTS for i in range(CURVE_POINTS + 1)]
        curve = [(d, found.curve.at(d * d)) for d in steps]
        golds.append(Series("fit d (α − β ln d)", curve, smooth=False))
    proxies = [Series("score", list(zip(distances, [x.proxy for x in found.points])), dots=True)]
    along = "√KL"
    figures = [
        Panel("Gold score over √KL", golds, "What training never saw.", along=along),
        Panel("Score over √KL", proxies, "What training was after.", along=along),
    ]
    rows = [[escape(x) for x in _cells(point)] for point in found.points]
    said = "".join(f"<p>{escape(text)}</p>" for text in _verdict(found))
    return document(
        title,
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(found.source)}</p></header>{said}'
        f'<div class="grid-of-figures first">{"".join(map(draw, figures))}</div>'
        f"{table(HEAD, rows)}",
    )


def _cells(point: Point) -> list[str]:
    return [
        str(point.step),
        f"{point.kl:.3f}",
        _with_error(point.proxy, point.proxy_error),
        _with_error(point.gold, point.gold_error),
        str(point.responses or "–"),
    ]


def _with_error(value: float, error: float) -> str:
    return number(value) if math.isnan(error) else f"{number(value)} ± {number(error)}"


def _verdict(found: Followed) -> list[str]:
    best, last = found.best, found.points[-1]
    told = [
        f"gold is highest at {best.kl:.3g} nats (step {best.step}): {number(best.gold)}; at the "
        f"largest KL, {last.kl:.3g} nats (step {last.step}), it is {number(last.gold)}, the score "
        f"{number(best.proxy)} and {number(last.proxy)}"
    ]
    if found.fell:
        told.append(
            "over-optimised: gold fell while the score did not. Stop at the KL where gold is "
            "highest, or hold the policy there (algorithm.kl_coef, algorithm.kl_target)"
        )
    else:
        told.append("no over-optimisation is seen: gold has not clearly fallen behind its best")
    peak = None if found.curve is None else found.curve.peak
    if peak is not None and found.points[0].kl <= peak <= last.kl:
        told.append(f"the fitted curve is highest at {peak:.3g} nats")
    return told
