"""A Python function of the user's as a reward, isolated in a worker process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmpg.rewards.process import WorkerDied, WorkerProcess, WorkerTimeout, plain
from lmpg.sections import UserError

GIVEN = ("prompts", "completions", "completion_ids")
START_TIMEOUT = 120.0
RETRY_TIMEOUTS, RETRY_SECONDS = 3, 30.0


class FunctionReward:
    """Scores by `FILE.py:NAME` or `package.module:NAME`; a failing sample comes back as None.

    The function gets one batch per call. A batch that fails as a whole (it raises, times out,
    dies, returns the wrong length) is tried again sample by sample. All retries of a batch share
    max(3 timeouts, 30 seconds); samples not tried by then have no score.

    name: the function's name. messages: what went wrong in the last call of `score`, one per
    sample without a score. notes: what else there is to say about it.
    """

    def __init__(self, spec: str, timeout: float):
        self.spec = _checked(spec)
        self.name = spec.rpartition(":")[2]
        self.timeout = timeout
        self.retry_seconds = max(RETRY_TIMEOUTS * timeout, RETRY_SECONDS)
        self.messages: list[str] = []
        self.notes: list[str] = []
        self._worker = WorkerProcess(self.spec, max(timeout, START_TIMEOUT))
        self._signature = self._first_start()

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raises if the function needs a parameter that the data has no column for."""
        known = [*GIVEN, *columns]
        for name in self._signature["required"]:
            if name not in known:
                raise UserError(
                    f"rewards.functions: {self.spec} has a parameter {name!r}, but the data has "
                    f"no such column. It can have any of: {', '.join(known)}; rename it, or give "
                    "it a default."
                )

    def score(
        self,
        prompts: list,
        completions: list,
        completion_ids: list[list[int]],
        columns: dict[str, list],
    ) -> list[float | None]:
        """One finite score per completion, or None where there is none."""
        self.messages, self.notes = [], []
        self.check_columns(columns)
        given = dict(zip(GIVEN, (prompts, completions, completion_ids)))
        arguments = self._wanted({**columns, **given})
        scores, failure = self._call(arguments, range(len(completions)))
        if failure is None or not completions:
            return scores
        if len(completions) == 1:
            self.messages.append(failure)
            return scores
        scores = self._one_by_one(arguments, len(completions))
        if None not in scores:
            self.notes.append(
                f"the batch of {len(completions)} failed ({failure}), but each sample alone has "
                "a score; batches are scored one by one as long as that is so, which is slow"
            )
        return scores

    def close(self) -> None:
        """Ends the worker process."""
        self._worker.stop()

    def _wanted(self, available: dict[str, list]) -> dict[str, list]:
        if self._signature["keywords"]:
            return available
        names = self._signature["parameters"]
        return {name: values for name, values in available.items() if name in names}

    def _one_by_one(self, arguments: dict[str, list], count: int) -> list[float | None]:
        scores: list[float | None] = []
        deadline = time.monotonic() + self.retry_seconds
        for index in range(count):
            if time.monotonic() > deadline:
                self.messages += [
                    f"not tried again: {self.retry_seconds:g} s of retries were used up"
                ] * (count - index)
                return scores + [None] * (count - index)
            single = {name: [values[index]] for name, values in arguments.items()}
            score, failure = self._call(single, [index])
            scores += score
            if failure is not None:
                self.messages.append(failure)
        return scores

    def _call(
        self, arguments: dict[str, list], indices: Iterable[int]
    ) -> tuple[list[float | None], str | None]:
        """Scores of one call; a message, and no scores, if it failed as a whole."""
        count = len(list(indices))
        try:
            reply = self._worker.call(arguments, count, self.timeout)
        except WorkerTimeout:
            return [None] * count, f"no reply within rewards.timeout of {self.timeout:g} s"
        except (WorkerDied, BrokenPipeError) as error:
            return [None] * count, str(error)
        except TypeError as error:
            raise UserError(self._unsendable(arguments, error)) from None
        if "error" in reply:
            return [None] * count, reply["error"]
        self.messages += reply["problems"].values()
        return reply["scores"], None

    def _unsendable(self, arguments: dict[str, list], error: TypeError) -> str:
        column = next(name for name, values in arguments.items() if not _sendable(values))
        return (
            f"rewards.functions: {self.spec} asks for the column {column!r}, which holds {error}; "
            "only text, numbers, dates, lists and dicts of these can be passed. Convert the "
            "column in the data."
        )

    def _first_start(self) -> dict[str, Any]:
        try:
            reply = self._worker.start()
        except WorkerTimeout:
            reply = {"error": f"importing it took more than {self._worker.start_timeout:g} s"}
        except (WorkerDied, BrokenPipeError) as error:
            reply = {"error": f"while importing it, {error}"}
        if "error" in reply:
            self._worker.stop()
            raise UserError(f"rewards.functions: cannot import {self.spec}: {reply['error']}")
        return reply


def _sendable(values: list) -> bool:
    try:
        json.dumps(values, default=plain)
    except TypeError:
        return False
    return True


def _checked(spec: str) -> str:
    """`spec` with an absolute path; raises if it isn't FILE.py:NAME or package.module:NAME."""
    source, _, name = spec.rpartition(":")
    if not source or not name.isidentifier():
        raise UserError(
            f"rewards.functions: {spec!r} names no function; expected FILE.py:NAME or "
            "package.module:NAME."
        )
    if not source.endswith(".py"):
        if os.sep in source or not all(part.isidentifier() for part in source.split(".")):
            raise UserError(
                f"rewards.functions: {source!r} in {spec!r} is neither a file ending in .py nor "
                "a module; expected FILE.py:NAME or package.module:NAME."
            )
        return spec
    path = Path(source).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"rewards.functions: the file {source} of {spec!r} doesn't exist.")
    return f"{path}:{name}"
