"""What the microscope found: a table for the terminal, JSON for a file, a page with pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from lmpg import __version__
from lmpg.language.diagnose.gradient_variance import Microscope
from lmpg.runs.printable import printable
from lmpg.runs.report.dots_by_name import Dot, draw_dots
from lmpg.runs.report.page import document, table
from lmpg.training.microscope.compared_methods import CRITIC, UNBIASED
from lmpg.training.microscope.estimate_quality import Figure, Quality

HEAD = ("estimator", "variance", "length", "angle", "bias", "one is off", "responses", "seconds")
WIDTHS = (32, 13, 13, 12, 13, 11, 10, 9)
MEANS = {
    "variance": f"of one estimate, over that of {UNBIASED}",
    "length": f"of the mean, over that of {UNBIASED}'s, the gradient of the expected score",
    "angle": f"between the mean and {UNBIASED}'s: what no number of samples makes good",
    "bias": f"the distance between these two means, over the length of {UNBIASED}'s; a factor, "
    "which the step size makes good, is part of it",
    "one is off": "the angle between a single estimate and the gradient, in the root mean square",
    "responses": "that an estimate needs so that its noise is as long as its mean (the gradient "
    "noise scale), and how many seconds these take",
}


def lines(found: Microscope) -> list[str]:
    """The table, with what was measured above it and what the columns mean below."""
    told = [*_setting(found), "", _line(HEAD)]
    told += [_line((name, *_cells(found, q))) for name, q in found.qualities.items()]
    told += ["", *_advice(found)]
    told += [f"{name}: {text}" for name, text in MEANS.items()]
    return [printable(line) for line in told]


def as_json(found: Microscope) -> dict[str, Any]:
    """All that was measured; NaN becomes null."""
    settings = found.settings
    return {
        "model": settings.model.path,
        "settings": settings.model_dump(mode="json"),
        "lmpg": __version__,
        "measured": dict(found.numbers),
        "unbiased": UNBIASED,
        "estimators": {name: _figures(found, q) for name, q in found.qualities.items()},
    }


def page(found: Microscope) -> str:
    """A page of its own: pictures of variance, angle and cost, and the table."""
    title = f"Gradients of {found.settings.model.path}"
    qualities = found.qualities
    variances = {name: q.relative_variance for name, q in qualities.items()}
    seen = {name: q for name, q in qualities.items() if q.seen}
    angles = {name: q.angle for name, q in seen.items()}
    costs = {name: _responses(found, q) for name, q in seen.items()}
    figures = [
        draw_dots("Variance", _dots(qualities, variances), _sentence("variance"), "", True),
        draw_dots("Angle of the mean", _dots(qualities, angles), _sentence("angle"), "°"),
        draw_dots("Responses", _dots(qualities, costs), _sentence("responses"), "", True),
    ]
    lead = "".join(f'<p class="lead">{escape(text)}</p>' for text in _setting(found))
    rows = [[escape(x) for x in (name, *_cells(found, q))] for name, q in qualities.items()]
    words = [*_advice(found), *(f"{name}: {text}" for name, text in MEANS.items())]
    body = (
        f"<header><h1>{escape(title)}</h1>{lead}</header>"
        f'<div class="grid-of-figures first">{"".join(figures)}</div>{table(HEAD, rows)}'
        + "".join(f'<p class="muted">{escape(text)}</p>' for text in words)
    )
    return document(title, body)


def _setting(found: Microscope) -> list[str]:
    s, n = found.settings, found.numbers
    told = [
        f"{s.model.path}: {s.batches} batches of {s.batch_size} responses, {s.group_size} to a "
        f"prompt; {n['tokens']:.1f} tokens each, score {n['score']:.3f} ± {n['score_std']:.3f}, "
        f"one score in {n['equal_groups']:.0%} of the groups"
    ]
    kept = "kept exactly"
    if n["sketch_error"]:
        kept = (
            f"in sketches of {n['sketch']:,.0f} numbers (squared norms off by "
            f"{n['sketch_error']:.1%} as measured)"
        )
    which = f" ({' '.join(s.parameters)})" if s.parameters else ""
    told.append(f"gradients by {n['parameters']:,.0f} parameters{which}, {kept}")
    cost = n["sampling_seconds"] + n["gradient_seconds"]
    told.append(
        f"an estimate takes {s.batch_size} responses and {cost:.1f} s of any estimator: sampling "
        f"and scoring {n['sampling_seconds']:.1f} s, gradient {n['gradient_seconds']:.1f} s"
    )
    if "critic_explains" in n:
        source = f"fitted to {n['critic_responses']:.0f} more responses"
        source = source if n["critic_responses"] else "trained with the model"
        explains = f"explains {n['critic_explains']:.0%} of the returns' variance"
        told.append(f"{CRITIC}'s critic: {source}, {explains}")
    return told


def _advice(found: Microscope) -> list[str]:
    hidden = [name for name, q in found.qualities.items() if not q.seen]
    if not hidden:
        return []
    share = "" if len(hidden) == len(found.qualities) else f" of {', '.join(hidden)}"
    return [
        f"–: the mean{share} does not stand out of the noise, so that its direction is unknown; "
        "more --batches, a larger --batch-size or fewer prompts (--size) would show it"
    ]


def _cells(found: Microscope, q: Quality) -> list[str]:
    rest = ["–"] * 6
    if q.seen:
        needed = _responses(found, q).value
        rest = [
            _with_error(q.length, 2),
            _with_error(q.angle, 1, "°"),
            _with_error(q.bias, 2),
            f"{q.single_angle.value:.1f}°",
            _count(needed),
            _count(needed * _seconds_each(found)),
        ]
    return [_with_error(q.relative_variance, 3 if q.relative_variance.value < 0.1 else 2), *rest]


def _with_error(figure: Figure, digits: int, unit: str = "") -> str:
    return f"{figure.value:.{digits}f} ± {figure.error:.{digits}f}{unit}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _line(cells: tuple[str, ...]) -> str:
    first, *rest = cells
    return f"{first:<{WIDTHS[0]}}" + "".join(f"{x:>{w}}" for x, w in zip(rest, WIDTHS[1:]))


def _responses(found: Microscope, q: Quality) -> Figure:
    size = found.settings.batch_size
    return Figure(q.noise.value * size, q.noise.error * size)


def _seconds_each(found: Microscope) -> float:
    n = found.numbers
    return (n["sampling_seconds"] + n["gradient_seconds"]) / found.settings.batch_size


def _sentence(column: str) -> str:
    text = MEANS[column]
    return text[:1].upper() + text[1:] + "."


def _dots(qualities: Mapping[str, Quality], figures: Mapping[str, Figure]) -> list[Dot]:
    """A dot for each estimator, coloured by its kind."""
    unknown = Figure(math.nan, math.nan)
    kinds = {name: re.split("[,:]| without", name)[0] for name in qualities}
    order = list(dict.fromkeys(kinds.values()))
    return [
        Dot(name, *figures.get(name, unknown), order.index(kinds[name]) + 1) for name in qualities
    ]


def _figures(found: Microscope, q: Quality) -> dict[str, Any]:
    names: tuple[str, ...] = (
        "relative_variance",
        "variance",
        "squared_length",
        "length",
        "cosine",
        "angle",
    )
    names += ("squared_bias", "bias", "noise", "single_angle")
    told: dict[str, Any] = {"seen": q.seen}
    for name in names:
        figure = getattr(q, name)
        told[name] = {"value": figure.value, "standard_error": figure.error}
    needed = _responses(found, q).value
    told["cost"] = {"responses": needed, "seconds": needed * _seconds_each(found)}
    return told
