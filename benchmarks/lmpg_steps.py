"""The program `lmpg`, timed step by step: `python benchmarks/lmpg_steps.py train grpo …`.

Everything runs as it does for a user. The one thing added is a wait after each step's log, where
`lockstep` takes the time and lets others have their turn.
"""

from __future__ import annotations

from typing import Any

from lockstep import Turn

from lmpg.cli.command import entry
from lmpg.runs.tracking import Tracker


def main() -> None:
    """Hang `Turn` behind the tracker and start the program."""
    turn, log = Turn(), Tracker.log

    def timed(self: Tracker, step: int, metrics: dict[str, Any]) -> None:
        log(self, step, metrics)
        turn(
            length=metrics["completions/mean_length"],
            phases={k: v for k, v in metrics.items() if k.startswith("time/")},
        )

    Tracker.log = timed  # type: ignore[method-assign,assignment]
    entry()


if __name__ == "__main__":
    main()
