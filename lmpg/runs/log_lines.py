"""The logs of a run, metrics.jsonl and samples.jsonl, line by line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METRICS, SAMPLES = FILES = "metrics.jsonl", "samples.jsonl"
SIDES = ("chosen", "rejected")
"""What a row of samples.jsonl calls the answers of a pair, and a report both of them."""


def log_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a log; none where there is no file. A last line that is being written is left
    out, and so is what is no row."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and (row := parsed(line)) is not None:
                yield row


def parsed(line: bytes) -> dict[str, Any] | None:
    """A line of a log; None where it is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and is_number(row.get("step")) else None


def is_number(value: object) -> bool:
    """Whether it is one that can be drawn."""
    return type(value) in (float, int) and math.isfinite(value)  # type: ignore[arg-type]
