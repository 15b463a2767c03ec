"""A gym run of lmpg, timed: iteration by iteration, or until it balances CartPole.

    python benchmarks/gym_steps.py steps --env.id CartPole-v1 …
    python benchmarks/gym_steps.py to_475 --config ppo_cartpole_fast …

Everything runs as it does for a user, log and all. `steps` waits after each iteration's log, where
`lockstep` takes the time. `to_475` ends the run after the third evaluation in a row whose mean
return is at least 475, and prints how long it trained until then, evaluations excluded.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from lockstep import Turn

from lmpg.cli.main import main, train_agent
from lmpg.gym.rollouts import GymSource
from lmpg.runs.tracking import Tracker

ENOUGH, IN_A_ROW = 475, 3


def take_turns() -> None:
    """Hang `Turn` behind the tracker."""
    turn, log = Turn(), Tracker.log

    def timed(self: Tracker, step: int, metrics: dict[str, Any]) -> None:
        log(self, step, metrics)
        phases = {k: v for k, v in metrics.items() if k.startswith("time/")}
        turn(steps=metrics["num_steps"], phases=phases)

    Tracker.log = timed  # type: ignore[method-assign,assignment]


class Clock:
    """Seconds of training since the evaluation before the first step, further ones excluded."""

    def __init__(self) -> None:
        self.spent = 0.0
        self.since: float | None = None
        self.means: list[float] = []
        self.evaluate, self.stop_reason = GymSource.evaluate, GymSource.stop_reason

    def hang(self) -> None:
        """Put it around the source's evaluations, and end the run when it is good enough."""
        clock = self

        def evaluate(source: GymSource) -> dict[str, float]:
            clock.spent += 0 if clock.since is None else time.perf_counter() - clock.since
            found = clock.evaluate(source)
            clock.means.append(found["return_mean"])
            if not clock.good:
                clock.since = time.perf_counter()
            return found

        def stop_reason(source: GymSource, step: int) -> str | None:
            if clock.good and clock.since is not None:
                clock.since = None
                told = {"seconds": clock.spent, "steps": source.runner.num_steps}
                print(json.dumps({"found": told | {"means": clock.means[1:]}}), flush=True)
            return "it is good enough" if clock.good else clock.stop_reason(source, step)

        GymSource.evaluate = evaluate  # type: ignore[method-assign]
        GymSource.stop_reason = stop_reason  # type: ignore[method-assign]

    @property
    def good(self) -> bool:
        """Whether the last evaluations all were."""
        newest = self.means[1:][-IN_A_ROW:]  # the first is of the untrained policy
        return len(newest) == IN_A_ROW and min(newest) >= ENOUGH


if __name__ == "__main__":
    if sys.argv[1] == "steps":
        take_turns()
    else:
        Clock().hang()
    main(lambda: train_agent(sys.argv[2:]))
