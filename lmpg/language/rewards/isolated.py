"""A reward function in a worker process, called in the background and again if it fails."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from lmpg.language.rewards.request import RewardReply, reply_of
from lmpg.language.rewards.specs import Spec, unsendable
from lmpg.language.rewards.worker_process import WorkerDied, WorkerProcess, WorkerTimeout, plain
from lmpg.settings.section import UserError

logger = logging.getLogger(__name__)
START_TIMEOUT = 120.0
RETRY_TIMEOUTS, RETRY_SECONDS = 3, 30.0
Arguments = dict[str, list]
OfTrainer = dict[str, Any] | None


class Background:
    """Does jobs of a worker process one after another, in a thread that lives as long as the
    process: a process dies with the thread that started it.
    """

    def __init__(self, process: WorkerProcess):
        self._process = process
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        # It is a daemon so that a program can end while a function hangs.
        self._thread = threading.Thread(target=_serve, args=(self._jobs,), daemon=True)
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None)

    def later(self, function: Callable, *arguments: Any) -> Future:
        """What the function returns, once the jobs before it are done."""
        future: Future = Future()
        self._jobs.put((future, function, arguments))
        return future

    def start(self) -> Future[dict[str, Any]]:
        """The process's first reply: what it has imported, or {"error"}."""
        return self.later(self._start)

    def close(self) -> None:
        """Ends the process, amid a call too."""
        self._process.closed = True
        self._jobs.put(None)
        while self._thread.is_alive():  # it may just be starting the process
            self._process.kill()
            self._thread.join(0.05)
        self._process.stop()

    def _start(self) -> dict[str, Any]:
        try:
            return self._process.start()
        except WorkerTimeout:
            return {"error": f"importing it took more than {self._process.start_timeout:g} s"}
        except (WorkerDied, BrokenPipeError) as error:
            return {"error": f"while importing it, {error}"}


class IsolatedFunction:
    """Calls a function in a process of its own, in the background and in order.

    A batch that fails as a whole (the function raises, times out, dies, returns the wrong length)
    is tried again sample by sample. All retries of a batch share max(3 timeouts, 30 seconds);
    samples not tried by then have no score.
    """

    def __init__(self, spec: Spec, timeout: float, sources: dict[str, list[str]]):
        self.spec = spec
        self.timeout = timeout
        self.retry_seconds = max(RETRY_TIMEOUTS * timeout, RETRY_SECONDS)
        self._process = WorkerProcess(
            spec.function, max(timeout, START_TIMEOUT), spec.arguments, sources
        )
        self._retries_told = False
        self._background = Background(self._process)

    def start(self) -> Future[dict[str, Any]]:
        """Imports the function; its signature, or {"error"}."""
        return self._background.start()

    def submit(
        self, arguments: Arguments, count: int, of_trainer: OfTrainer = None
    ) -> Future[RewardReply]:
        """Begins to score a batch of `count` completions. of_trainer: see `trainer_arguments`."""
        return self._background.later(self._reply, arguments, count, of_trainer)

    def close(self) -> None:
        """Ends the process, amid a call too."""
        self._background.close()

    def _reply(self, arguments: Arguments, count: int, of_trainer: OfTrainer) -> RewardReply:
        started = time.monotonic()
        reply, failure = self._call(arguments, count, of_trainer)
        slow = time.monotonic() - started >= self.timeout
        if failure is None:
            return reply
        if count <= 1:
            reply.messages.append(failure)
            return reply
        if slow:
            self._tell_of_retries(count, failure)
        reply = self._one_by_one(arguments, count, of_trainer)
        if None not in reply.scores:
            reply.notes.append(
                f"the batch of {count} failed ({failure}), but each sample alone has "
                "a score; batches are scored one by one as long as that is so, which is slow"
            )
        return reply

    def _tell_of_retries(self, count: int, failure: str) -> None:
        """Logs that retries begin, once: a function that hangs would be waited for in silence."""
        if not self._retries_told:
            self._retries_told = True
            logger.warning(
                "reward %s: a batch failed (%s); its %d responses are tried one by one, for at "
                "most %g s (said once)",
                self.spec.name,
                failure,
                count,
                self.retry_seconds,
            )

    def _one_by_one(self, arguments: Arguments, count: int, of_trainer: OfTrainer) -> RewardReply:
        reply = RewardReply()
        deadline = time.monotonic() + self.retry_seconds
        for index in range(count):
            if time.monotonic() > deadline:
                left = count - index
                said = f"not tried again: {self.retry_seconds:g} s of retries were used up"
                return reply + RewardReply([None] * left, [said] * left)
            single = {name: [column[index]] for name, column in arguments.items()}
            one, failure = self._call(single, 1, of_trainer)
            reply += one
            if failure is not None:
                reply.messages.append(failure)
        return reply

    def _call(
        self, arguments: Arguments, count: int, of_trainer: OfTrainer
    ) -> tuple[RewardReply, str | None]:
        """The reply to one call; if it failed as a whole, one without scores, and a message."""
        nothing = RewardReply([None] * count)
        try:
            reply = self._process.call(arguments, count, self.timeout, of_trainer)
        except WorkerTimeout:
            return nothing, f"no reply within rewards.timeout of {self.timeout:g} s"
        except (WorkerDied, BrokenPipeError) as error:
            return nothing, str(error)
        except TypeError as error:
            raise UserError(self._unsendable(arguments, error)) from None
        if "error" in reply:
            return nothing, reply["error"]
        return reply_of(reply), None

    def _unsendable(self, arguments: Arguments, error: TypeError) -> str:
        column = next(name for name, cells in arguments.items() if not _sendable(cells))
        return unsendable(self.spec.text, column, error)


def _sendable(column: list) -> bool:
    with contextlib.suppress(TypeError):
        json.dumps(column, default=plain)
        return True
    return False


def _serve(jobs: queue.SimpleQueue) -> None:
    while (job := jobs.get()) is not None:
        future, function, arguments = job
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        del job, future, function, arguments  # or what is no longer needed lives till the next one
