"""What a worker's reply must look like: a function can reach all that its process has."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

Fault = Callable[[dict[str, Any]], str | None]
"""What is wrong with a reply, None where nothing is."""


def fitting_reply(line: bytes, number: str, fault: Fault) -> dict[str, Any] | None:
    """The reply in `line` to request `number`, None if it is not one; ValueError if it is no
    good."""
    if number.encode() not in line:
        return None
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it cannot be read") from None
    if not isinstance(reply, dict) or reply.get("id") != number:
        raise ValueError("it is not the worker's")
    if not _are_sources(reply.get("sources")):
        raise ValueError("its sources are not text")
    if isinstance(reply.get("error"), str):
        return reply
    if (problem := fault(reply)) is not None:
        raise ValueError(problem)
    return reply


def signature_fault(reply: dict[str, Any]) -> str | None:
    """What is wrong with a reply that should be a function's signature."""
    return None if _is_signature(reply) else "it is incomplete"


def scores_fault(count: int, reply: dict[str, Any]) -> str | None:
    """What is wrong with a reply that should have so many scores."""
    return None if _are_scores(reply, count) else f"it has not {count} scores"


def _are_scores(reply: dict[str, Any], count: int) -> bool:
    scores, problems = reply.get("scores"), reply.get("problems")
    return (
        isinstance(scores, list)
        and len(scores) == count
        and all(_is_score(score) for score in scores)
        and isinstance(problems, dict)
        and all(isinstance(problem, str) for problem in problems.values())
        and all(i.isdecimal() for i in problems)
        and _are_logs(reply, count)
    )


def _are_logs(reply: dict[str, Any], count: int) -> bool:
    """Columns of as many values as there are scores, and lists of numbers, by names."""
    extras, metrics = reply.get("extras", {}), reply.get("metrics", {})
    return (
        isinstance(extras, dict)
        and isinstance(metrics, dict)
        and all(isinstance(x, list) and len(x) == count for x in extras.values())
        and all(isinstance(x, list) and all(map(_is_score, x)) for x in metrics.values())
        and all(None not in x for x in metrics.values())
    )


def _is_score(value: Any) -> bool:
    """A finite number, a list of them, or None."""
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(number, float) and math.isfinite(number) for number in numbers)


def _is_signature(reply: dict[str, Any]) -> bool:
    names = [reply.get(key) for key in ("parameters", "required", "options")]
    return isinstance(reply.get("keywords"), bool) and all(_are_texts(x) for x in names)


def _are_sources(sources: Any) -> bool:
    return isinstance(sources, dict) and all(
        _are_texts(x) and len(x) == 2 for x in sources.values()
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, str) for x in value)
