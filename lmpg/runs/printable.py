"""Text for a terminal. It imports nothing of lmpg: a reward's supervisor reads it by itself."""

from __future__ import annotations

import re

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text from elsewhere (a model, data, a reward) without what steers a terminal: escape codes
    and the like are spelt out."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
