"""Hints: what a user meant by a name that is none."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def nearest(path: str, known: list[str]) -> str | None:
    """The known dotted name closest to a misspelt one; None where none is close."""
    leaf = path.rpartition(".")[2]
    same_leaf = [k for k in known if k.rpartition(".")[2] == leaf]
    close = same_leaf or difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    if not close:
        by_leaf = {k.rpartition(".")[2]: k for k in known}
        close = [by_leaf[m] for m in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.7)]
    return close[0] if close else None


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`; did you mean …?`, where a known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
