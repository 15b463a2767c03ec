"""A worker process with a deadline: started lazily, killed with its children, never a zombie."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).with_name("worker.py")


class WorkerTimeout(Exception):
    """The worker didn't reply in time; it has been killed."""


class WorkerDied(Exception):
    """The worker ended without a reply (os._exit, a segfault, out of memory)."""


class WorkerProcess:
    """One reward function's process; restarted by the next call after it was killed.

    arguments: the function's fixed arguments. closed: True lets no process start any more.
    """

    def __init__(self, spec: str, start_timeout: float, arguments: dict[str, Any] | None = None):
        self.spec = spec
        self.arguments = arguments or {}
        self.closed = False
        self.start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize | None = None
        self._received = b""

    def start(self) -> dict[str, Any]:
        """Starts the process, imports the function; its first reply: a signature or an error."""
        self.stop()
        if self.closed:
            raise WorkerDied("it has been closed")
        # -P: the folder of worker.py, which is inside this package, stays off sys.path
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._finalizer = weakref.finalize(self, _kill, self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            os.set_blocking(pipe.fileno(), False)  # type: ignore[union-attr]
        path = [os.getcwd(), *(entry or os.getcwd() for entry in sys.path)]
        hello = {
            "spec": self.spec,
            "arguments": self.arguments,
            "sys_path": path,
            "parent": os.getpid(),
        }
        return self._exchange(hello, self.start_timeout)

    def call(self, arguments: dict[str, list], count: int, timeout: float) -> dict[str, Any]:
        """One call of the function on `count` completions, within `timeout` seconds."""
        request = {"arguments": arguments, "count": count}
        if self._process is None:
            self._restart()
        try:
            return self._exchange(request, timeout)
        except BrokenPipeError:  # it ended after its last reply: not this call's fault
            self._restart()
            return self._exchange(request, timeout)

    def kill(self) -> None:
        """Kills the process from another thread than the one that waits for its reply."""
        process = self._process
        if process is not None:
            _kill_group(process)

    def stop(self) -> None:
        """Kills the process and its children, if there are any."""
        if self._finalizer is not None:
            self._finalizer()
        self._process, self._finalizer, self._received = None, None, b""

    def _restart(self) -> None:
        reply = self.start()
        if "error" in reply:
            raise WorkerDied(f"it could not be imported again: {reply['error']}")

    def _exchange(self, message: dict, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        data = json.dumps(message, default=plain).encode() + b"\n"
        try:
            self._write(data, deadline)
            return json.loads(self._read_line(deadline))
        except BrokenPipeError:
            self.stop()
            raise
        except TimeoutError:
            self.stop()
            raise WorkerTimeout from None
        except EOFError:
            raise WorkerDied(self._epitaph()) from None

    def _write(self, data: bytes, deadline: float) -> None:
        pipe = self._process.stdin.fileno()  # type: ignore[union-attr]
        view = memoryview(data)
        while view:
            _wait(pipe, selectors.EVENT_WRITE, deadline)
            view = view[os.write(pipe, view) :]

    def _read_line(self, deadline: float) -> bytes:
        pipe = self._process.stdout.fileno()  # type: ignore[union-attr]
        while b"\n" not in self._received:
            _wait(pipe, selectors.EVENT_READ, deadline)
            chunk = os.read(pipe, 1 << 20)
            if not chunk:
                raise EOFError
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _epitaph(self) -> str:
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)  # its own exit code, before `stop` makes it SIGKILL's
        self.stop()
        code = process.returncode
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
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
    """Ends the whole process group, whatever the function started included."""
    _kill_group(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
