"""What TRL's trainer gives reward functions beside columns: its state, and places to log to.

Like the worker it imports nothing but the standard library.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any


def trainer_arguments(
    wanted: dict[str, Any] | None, count: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments for a call on `count` completions, and a dict that gets what is logged through
    them: "extras" (columns beside the completions) and "metrics" (lists of numbers).

    wanted: {"names", "state"}: what the function names of them, and the state; None: nothing.
    """
    logs: dict[str, Any] = {}

    def log_extra(column: str, values: Any) -> None:
        """A further column beside the completions."""
        listed = [_scalar(x) for x in values]
        if len(listed) != count:
            raise ValueError(f"log_extra({column!r}) got {len(listed)} values, expected {count}")
        logs.setdefault("extras", {})[str(column)] = listed

    def log_metric(name: str, value: Any) -> None:
        """A number beside the metrics of the step."""
        if not math.isfinite(number := float(value)):
            raise ValueError(f"log_metric({name!r}) got {number}, expected a finite number")
        logs.setdefault("metrics", {}).setdefault(str(name), []).append(number)

    if wanted is None:
        return {}, logs
    state = SimpleNamespace(**wanted["state"])
    given = {"trainer_state": state, "log_extra": log_extra, "log_metric": log_metric}
    return {name: given[name] for name in wanted["names"]}, logs


def _scalar(value: Any) -> Any:
    """A text, a finite number, or the text of anything else."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)
