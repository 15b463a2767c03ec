"""Warnings that are worth one line, however often their cause comes."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)
_said: set[str] = set()


def say_once(text: str, about: str | None = None) -> None:
    """Warn, unless this process has warned of the same before.

    about: what makes a warning the same, where its text has numbers that differ; none is the text.
    """
    if (about or text) not in _said:
        _said.add(about or text)
        _log.warning("%s (said once)", text)
