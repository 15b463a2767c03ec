"""Finds the final number of an answer that is written in words."""

from __future__ import annotations

import re
from fractions import Fraction

_SIGN = r"(?:(?<![\w)\]}])[-+])?"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_PLAIN = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,2}}(?!\w))?"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN}\$?{_SIGN})(?P<over>{_PLAIN})(?:\s?/\s?(?P<under>{_PLAIN}))?"
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac(?:\{([^{}]*)\}|(\d))(?:\{([^{}]*)\}|(\d))")
LONGEST = 400  # characters of a number; none that is meant as an answer has more


def final_number(text: str) -> Fraction | None:
    r"""The number that `text` gives as its answer, None if it holds none.

    It is the last number behind the last `####` (in its line), else in the last `\boxed{}`,
    else in the whole text.
    """
    numbers = list(_NUMBER.finditer(_tidied(final_part(text))))
    return _value(numbers[-1]) if numbers else None


def final_part(text: str) -> str:
    r"""The line behind the last `####`, else what the last `\boxed{}` holds, else `text`."""
    _, marker, behind = text.rpartition("####")
    if marker:
        return behind.strip().partition("\n")[0]
    _, marker, behind = text.rpartition("\\boxed{")
    return _until_closed(behind) if marker else text


def _until_closed(text: str) -> str:
    depth = 1
    for i, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:i]
    return text


def _tidied(text: str) -> str:
    """The same text with one way of writing minus signs, fractions and separators."""
    for written, meant in (("−", "-"), ("\\$", "$"), ("{,}", ","), ("\\,", ""), ("\\!", "")):
        text = text.replace(written, meant)
    return _LATEX_FRACTION.sub(r"\1\2/\3\4", text)


def _value(number: re.Match[str]) -> Fraction | None:
    if len(number.group()) > LONGEST:
        return None
    over, under = (Fraction((number[x] or "1").replace(",", "")) for x in ("over", "under"))
    if under == 0:
        return None
    return -over / under if number["sign"].count("-") % 2 else over / under
