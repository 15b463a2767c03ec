"""A worker process with a deadline: started lazily, killed with its children, never a zombie."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
import weakref
from functools import partial
from pathlib import Path
from typing import Any

from lmpg.language.rewards.replies import Fault, fitting_reply, scores_fault, signature_fault
from lmpg.language.rewards.supervisor import SIGNALLED

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
LARGEST_REPLY = 1 << 28  # bytes; a score takes about twenty
GRACE = 2.0  # seconds that the supervisor has to end what the worker has started


class WorkerTimeout(Exception):
    """The worker didn't reply in time; it has been killed."""


class WorkerDied(Exception):
    """The worker ended without a reply (os._exit, a segfault), or its reply does not fit."""


class WorkerProcess:
    """One reward function's process; restarted by the next call after it was killed.

    arguments: the function's fixed arguments. closed: True lets no process start any more.
    sources: what the processes read from local files (path → module and text), which those that
    replace them get; workers of one function share it. server: a module that serves something else
    than a function, see `worker`.
    """

    def __init__(
        self,
        spec: str,
        start_timeout: float,
        arguments: dict[str, Any] | None = None,
        sources: dict[str, list[str]] | None = None,
        server: str | None = None,
    ):
        self.spec = spec
        self.server = server
        self.arguments = arguments or {}
        self.sources = {} if sources is None else sources
        self.closed = False
        self.start_timeout = start_timeout
        self._sys_path = [os.getcwd(), *(entry or os.getcwd() for entry in sys.path)]
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize | None = None
        self._received = bytearray()

    def start(self) -> dict[str, Any]:
        """Starts the process, imports the function; its first reply: a signature or an error."""
        reply = self._started()
        if not self._keeps(reply):  # another worker read a file before it was edited
            reply = self._started()
        return reply

    def _started(self) -> dict[str, Any]:
        self.stop()
        if self.closed:
            raise WorkerDied("it has been closed")
        try:  # -P: the folder of supervisor.py, which is inside this package, stays off sys.path
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_SUPERVISOR)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:  # no memory, or no process, is left
            raise WorkerDied(f"its process cannot be started: {error.strerror}") from None
        self._finalizer = weakref.finalize(self, _kill, self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            os.set_blocking(pipe.fileno(), False)  # type: ignore[union-attr]
        hello = {
            "spec": self.spec,
            "arguments": self.arguments,
            "server": self.server,
            "sys_path": self._sys_path,
            "sources": self.sources,
        }
        fault: Fault = signature_fault if self.server is None else lambda reply: None
        return self._exchange(hello, fault, self.start_timeout)

    def _keeps(self, reply: dict[str, Any]) -> bool:
        """Whether all that the worker read is what is kept of these files from now on."""
        return all(self.sources.setdefault(k, v) == v for k, v in reply["sources"].items())

    def call(
        self,
        arguments: dict[str, list],
        count: int,
        timeout: float,
        of_trainer: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One call of the function on `count` completions, within `timeout` seconds.

        of_trainer: see `trainer_arguments`.
        """
        request = {"arguments": arguments, "count": count, "of_trainer": of_trainer}
        return self.ask(request, partial(scores_fault, count), timeout)

    def ask(self, request: dict[str, Any], fault: Fault, timeout: float) -> dict[str, Any]:
        """The reply to one request, within `timeout` seconds. fault: what is wrong with a reply."""
        if self._process is None or self._has_ended():
            self._restart()
        try:
            reply = self._exchange(request, fault, timeout)
        except BrokenPipeError:  # it ended after its last reply: not this call's fault
            self._restart()
            reply = self._exchange(request, fault, timeout)
        self._keeps(reply)
        return reply

    def kill(self) -> None:
        """Kills the process from another thread than the one that waits for its reply."""
        process = self._process
        if process is not None:
            process.terminate()

    def stop(self) -> None:
        """Kills the process and all that it has started."""
        if self._finalizer is not None:
            self._finalizer()
        self._process, self._finalizer = None, None
        self._received.clear()

    def _restart(self) -> None:
        reply = self.start()
        if "error" in reply:
            raise WorkerDied(f"it could not be imported again: {reply['error']}")

    def _has_ended(self) -> bool:
        """Whether the worker, which has replied to all that it was asked, is no more."""
        pipe = self._process.stdout.fileno()  # type: ignore[union-attr]
        with contextlib.suppress(BlockingIOError):
            return not os.read(pipe, 1 << 16)
        return False

    def _exchange(self, message: dict, fault: Fault, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        number = secrets.token_hex(8)
        data = json.dumps({"id": number, **message}, default=plain).encode() + b"\n"
        try:
            self._write(data, deadline)
            while (reply := fitting_reply(self._read_line(deadline), number, fault)) is None:
                pass  # what a function has written into the pipe
            return reply
        except BrokenPipeError:
            self.stop()
            raise
        except TimeoutError:
            self.stop()
            raise WorkerTimeout from None
        except EOFError:
            raise WorkerDied(self._epitaph()) from None
        except ValueError as error:
            self.stop()
            raise WorkerDied(
                f"the reply of its process does not fit: {error}; a function must leave alone the "
                "descriptors that it has not opened"
            ) from None

    def _write(self, data: bytes, deadline: float) -> None:
        pipe = self._process.stdin.fileno()  # type: ignore[union-attr]
        view = memoryview(data)
        while view:
            _wait(pipe, selectors.EVENT_WRITE, deadline)
            view = view[os.write(pipe, view) :]

    def _read_line(self, deadline: float) -> bytes:
        pipe = self._process.stdout.fileno()  # type: ignore[union-attr]
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > LARGEST_REPLY:
                raise ValueError(f"it has more than {LARGEST_REPLY >> 20} MB")
            _wait(pipe, selectors.EVENT_READ, deadline)
            chunk = os.read(pipe, 1 << 20)
            if not chunk:
                raise EOFError
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _epitaph(self) -> str:
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)  # its own exit code, before `stop` makes it SIGTERM's
        code = process.returncode
        self.stop()
        if code is None:
            return "it closed the descriptor that its process replies through"
        number = code - SIGNALLED if code > SIGNALLED else -code
        if number in set(signal.Signals):
            return f"its process was killed by {signal.Signals(number).name}"
        return f"its process ended with exit code {code}"


def plain(value: Any) -> Any:
    """Converts what JSON doesn't know: arrays to lists, dates to ISO text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} {str(value)[:40]!r}")


def _wait(pipe: int, event: int, deadline: float) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, event)
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise TimeoutError


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the worker and whatever it has started; its supervisor finds all of them."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:  # the function has stopped it
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
