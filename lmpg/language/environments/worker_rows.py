"""Rows whose environments live in one worker process: asked in turn, made again where it dies."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from lmpg.language.environments.text_episodes import LATER, LOST, Call, Result, slow
from lmpg.language.rewards.isolated import RETRY_TIMEOUTS, START_TIMEOUT, Background
from lmpg.language.rewards.specs import Spec
from lmpg.language.rewards.worker_process import WorkerDied, WorkerProcess, WorkerTimeout

SERVER = "lmpg.language.environments.text_episodes"
LEAST_WASTED = 30.0
MARGIN = 1.0  # seconds beside the timeout, for the calls before the one that hangs
_KEYS = ("observation", "reward", "terminated", "truncated")


@dataclass
class _History:
    """All calls of an episode and what came of them, to play it again."""

    calls: list[Call] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)


class WorkerRows:
    """Environments of some rows in a process of their own.

    Calls go in one request. If it fails as a whole, each row is played again in a new process and
    asked alone: who hangs or ends the process is lost, and so is who does not repeat itself. All
    rows that fail in one turn share max(3 timeouts, 30 s); those not asked by then are lost.
    """

    def __init__(
        self, spec: Spec, arguments: dict[str, Any], timeout: float, sources: dict[str, list[str]]
    ):
        self._timeout = timeout
        self._longest_waste = max(RETRY_TIMEOUTS * timeout, LEAST_WASTED)
        start = max(timeout, START_TIMEOUT)
        self._process = WorkerProcess(spec.function, start, arguments, sources, server=SERVER)
        self._background = Background(self._process)
        self._histories: dict[int, _History] = {}

    def start(self) -> Future[Result]:
        """Imports and makes one environment; {} or {"error"}."""
        return self._background.start()

    def submit(self, calls: list[Call], fresh: bool) -> Future[list[Result]]:
        """Begins calls, one per row; `fresh` ends all earlier episodes first."""
        return self._background.later(self._results, calls, fresh)

    def close(self) -> None:
        """Ends the process, amid a call too."""
        self._background.close()

    def _results(self, calls: list[Call], fresh: bool) -> list[Result]:
        if fresh:
            self._histories = {call["row"]: _History() for call in calls}
        found: dict[int, Result] = {}
        left, failure = calls, None
        while (left or fresh) and failure is None:  # those of earlier episodes are to be closed
            results, failure = self._asked(left, fresh)
            fresh = False
            for call, result in zip(left, results):
                if LATER != result != LOST:
                    found[call["row"]] = self._kept(call, result)
            left = [x for x, result in zip(left, results) if x["row"] not in found]
            if LOST in results:
                break
        return self._alone(left, found, calls)

    def _alone(self, left: list[Call], found: dict[int, Result], calls: list[Call]) -> list[Result]:
        """The results of all calls, of which those that are left are asked one by one."""
        wasted = 0.0
        for call in left:
            if wasted > self._longest_waste:
                said = f"not asked: others before it hung for {wasted:.0f} s in this turn"
                found[call["row"]] = {"error": said}
                continue
            before = time.monotonic()
            found[call["row"]] = self._kept(call, self._one(call))
            if "error" in found[call["row"]]:
                wasted += time.monotonic() - before
        return [found[call["row"]] for call in calls]

    def _one(self, call: Call) -> Result:
        (result,), failure = self._asked([call])
        if failure is None and result == LOST:
            problem = self._played_again(call["row"])
            if problem is not None:
                return {"error": problem}
            (result,), failure = self._asked([call])
        return result if failure is None else {"error": failure}

    def _played_again(self, row: int) -> str | None:
        """Plays a row's episode again in a new process; what went wrong, None where it is as it
        was."""
        history = self._histories[row]
        for call, before in zip(history.calls, history.results):
            (again,), failure = self._asked([call])
            problem = failure or again.get("error")
            if problem is None and any(again.get(key) != before[key] for key in _KEYS):
                problem = "it gives another outcome for the same seed and actions"
            if problem is not None:
                return f"another row ended its process, and played again, {problem}"
        return None

    def _kept(self, call: Call, result: Result) -> Result:
        history = self._histories[call["row"]]
        history.calls.append(call)
        history.results.append(result)
        return result

    def _asked(self, calls: list[Call], fresh: bool = False) -> tuple[list[Result], str | None]:
        """The outcomes of calls; none and what went wrong where the request failed as a whole."""
        request = {"calls": calls, "fresh": fresh, "timeout": self._timeout}
        nothing, limit = [LATER for _ in calls], self._timeout + MARGIN
        try:
            reply = self._process.ask(request, lambda reply: _fault(reply, len(calls)), limit)
        except WorkerTimeout:
            is_step = any("action" in call for call in calls)
            return nothing, slow("step" if is_step else "reset", self._timeout)
        except (WorkerDied, BrokenPipeError) as error:
            return nothing, str(error)
        if "error" in reply:  # some rows may have taken their step, and nobody knows which
            self._process.stop()
            return nothing, reply["error"]
        return reply["outcomes"], None


def _fault(reply: Result, count: int) -> str | None:
    """What is wrong with a reply that should have so many outcomes."""
    outcomes = reply.get("outcomes")
    if not isinstance(outcomes, list) or len(outcomes) != count:
        return f"it has not {count} outcomes"
    for outcome in outcomes:
        if not isinstance(outcome, dict):
            return "an outcome is no object"
        whole = isinstance(outcome.get("error"), str) or outcome in (LOST, LATER)
        if not whole and not {*_KEYS, "info"} <= outcome.keys():
            return "an outcome is incomplete"
    return None
