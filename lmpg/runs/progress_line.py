"""The line that the console gets of a step: what matters most of its metrics, and the time left."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from lmpg.runs.report.meanings import HEADLINES
from lmpg.runtime.progress import clock, time_left

COLUMNS = (  # label, metrics of which the first present one is shown, format
    ("reward", ("reward", "objective/scores"), "8.3f"),
    ("return", ("episode/return_mean",), "8.1f"),
    ("accuracy", ("rewards/accuracy", "pair_accuracy"), "5.3f"),
    ("margin", ("rewards/margin", "margin"), "7.3f"),
    ("kl_ref", ("objective/kl",), "7.3f"),  # nats per response to the reference
    ("kl_update", ("policy/approx_kl",), "7.4f"),  # nats per step, old to new policy
    ("loss", ("loss/total", "loss"), "9.4f"),
    ("length", ("completions/mean_length",), "5.1f"),
    ("tok/s", ("perf/tokens_per_second",), "8,.0f"),
    ("steps/s", ("perf/steps_per_second",), "9,.0f"),
)
CALLED = {"kl": "kl_ref"}
"""What held-out figures are called here, if not by their name."""


class ProgressLine:
    """One aligned line per step, with the time that is left."""

    def __init__(self, total_steps: int, interval: float) -> None:
        self.total_steps, self.interval = total_steps, interval
        self.started = time.monotonic()
        self.last_line = -math.inf
        self.first_step: int | None = None

    def show(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Print the step's line, unless one was printed just now."""
        now = time.monotonic()
        if self.first_step is None:  # what was before it is start-up, not a step's time
            self.first_step = step
        done = step >= self.total_steps
        if now - self.last_line < self.interval and not done and "eval" not in str(metrics.keys()):
            return
        self.last_line = now
        width = len(str(self.total_steps))
        parts = [f"step {step:>{width}}/{self.total_steps}", *columns(metrics)]
        elapsed = now - self.started
        steps = step - self.first_step + 1
        left = time_left(elapsed, steps, steps + self.total_steps - step)
        parts.append(f"{clock(elapsed)} elapsed, {left}")
        print(" | ".join(parts), flush=True)

    def close(self) -> None:
        """Nothing to end."""


def columns(metrics: Mapping[str, Any]) -> list[str]:
    """What matters most of a step's metrics, each with its label."""
    found = []
    for label, names, form in COLUMNS:
        name = next((name for name in names if name in metrics), None)
        if name is not None:
            value = math.nan if metrics[name] is None else metrics[name]
            found.append(f"{label} {value:{form}}")
    for name in HEADLINES:
        if metrics.get(f"eval/{name}") is not None:
            found.append(f"eval {CALLED.get(name, name)} {metrics[f'eval/{name}']:.3f}")
    return found
