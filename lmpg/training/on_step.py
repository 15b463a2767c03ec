"""The user's function that is called after every iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmpg.runs.tracking import as_json
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError

OnStep = Callable[[int, dict[str, Any]], object]
"""(iterations done, metrics of the last) → "stop" to end the run now, anything else to go on."""


def call_on_step(
    on_step: OnStep, iteration: int, metrics: dict[str, float], processes: Processes
) -> tuple[bool, Exception | None]:
    """Whether it wants no further iteration, and what it raised; on every rank, though the main
    process alone calls it."""
    raised: list[Exception] = []

    def called() -> tuple[bool, str | None]:
        try:
            return on_step(iteration, as_json(metrics)) == "stop", None
        except Exception as error:
            raised.append(error)
            return False, f"on_step raised {type(error).__name__}: {error}"

    stop, problem = processes.on_main(called)
    if problem is None:
        return stop, None
    return stop, raised[0] if raised else UserError(problem)
