"""A small grammar: rules that both write sentences and recognise them."""

from __future__ import annotations

import random
import re
from functools import cache

Rules = dict[str, tuple[str, ...]]
"""Symbol → alternatives; an alternative is text with other symbols in braces."""

_SYMBOL = re.compile(r"\{([^{}]+)\}")


def write(rules: Rules, text: str, rng: random.Random) -> str:
    """`text` with each `{symbol}` replaced by one of its alternatives, drawn evenly."""
    return _SYMBOL.sub(lambda m: write(rules, rng.choice(rules[m[1]]), rng), text)


def pattern(rules: Rules, text: str) -> str:
    """The regular expression of all that `write` can make of `text`; rules must not recurse."""

    @cache
    def symbol(name: str) -> str:
        return "(?:" + "|".join(map(expand, rules[name])) + ")"

    def expand(part: str) -> str:
        pieces = _SYMBOL.split(part)  # plain text and symbol names take turns
        return "".join(symbol(x) if i % 2 else re.escape(x) for i, x in enumerate(pieces))

    return expand(text)


def count(rules: Rules, text: str) -> int:
    """How many derivations `text` has."""
    total = 1
    for name in _SYMBOL.findall(text):
        total *= sum(count(rules, alternative) for alternative in rules[name])
    return total
