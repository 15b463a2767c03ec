"""The process above a reward's worker, which ends all that the worker has started.

It is started as a file of its own, imports nothing but the standard library, and forks the worker.
Whatever the worker starts becomes this process's child once its own parent has gone, in whatever
session it is (Linux). So when the worker ends, or the trainer ends or asks by SIGTERM, every
descendant is found and killed. The trainer may be killed by SIGKILL, amid a call too: the kernel
then sends this process SIGTERM.

What the worker and its children print comes here too, and goes on to stderr without what steers a
terminal: it may quote a model.

Elsewhere than on Linux it looks for the trainer twice a second and kills the worker's process
group; what a reward there has put into a session of its own is not found.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib.util
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

LINUX = sys.platform.startswith("linux")
SIGNALLED = 128  # plus a signal's number is the exit code of a process that the signal ended
PATIENCE = 10.0  # seconds for processes that do not die of SIGKILL (they wait for a disk)
LAST_WORDS = 1.0  # seconds for what was printed, where the console is stopped
SET_PARENT_DEATH_SIGNAL, SET_CHILD_SUBREAPER = 1, 36


_asked: list[bool] = []


class Asked(BaseException):
    """The worker is to end: the trainer has asked for it, or has gone."""


def main() -> None:
    """Forks the worker and waits for its end; the exit code is the worker's."""
    supervisor = os.getpid()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGTERM, _ask)
    _watch()
    requests, replies = _own_descriptors()
    printed, printing = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(printed)
        for standard in (1, 2):
            os.dup2(printing, standard)
        os.close(printing)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        _die_with(supervisor, signal.SIGKILL)
        given = (
            _module("local_sources").keep,
            _module("results/trainer_arguments").trainer_arguments,
        )
        _module("worker").serve(requests, replies, *given)
        return
    for descriptor in (requests, replies, printing):
        os.close(descriptor)
    console = threading.Thread(target=_pass_on, args=(printed,), daemon=True)
    console.start()
    try:
        code = _exit_code(worker)
        _asked.append(True)  # from now on it need not be asked
    except Asked:
        code = SIGNALLED + signal.SIGTERM
    _end_descendants(worker)
    console.join(LAST_WORDS)
    os._exit(code)


def _pass_on(printed: int) -> None:
    """Writes to stderr what is printed, until nobody is left who prints."""
    signal.pthread_sigmask(
        signal.SIG_BLOCK, signal.valid_signals()
    )  # the main thread waits for them
    printable = _module("../../runs/printable").printable
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    decoder = codecs.getincrementaldecoder(encoding)("backslashreplace")
    while chunk := os.read(printed, 1 << 16):
        left = printable(decoder.decode(chunk)).encode(encoding, "backslashreplace")
        with contextlib.suppress(OSError):  # a console that has gone
            while left:
                left = left[os.write(2, left) :]


def _exit_code(worker: int) -> int:
    """Waits for the worker, and for whoever became this process's child meanwhile."""
    ended, status = os.waitpid(-1, 0)
    while ended != worker:
        ended, status = os.waitpid(-1, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else SIGNALLED - code


def _end_descendants(worker: int) -> None:
    """Kills children until there are none: those of a child that was killed come here."""
    deadline = time.monotonic() + PATIENCE
    if not LINUX:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker, signal.SIGKILL)
    while time.monotonic() < deadline:
        for child in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _children() -> list[int]:
    """This process's children; nobody else can get their numbers before they are waited for."""
    return [int(p.name) for p in Path("/proc").glob("[0-9]*") if _parent_of(p) == os.getpid()]


def _parent_of(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, IndexError):  # it has ended meanwhile
        return None


def _watch() -> None:
    """Makes the trainer's end, however it comes, raise `Asked`; adopts orphans."""
    trainer = os.getppid()
    if LINUX:
        _process_control(SET_CHILD_SUBREAPER, 1)
        _process_control(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    else:
        signal.signal(signal.SIGALRM, lambda *_: None if os.getppid() == trainer else _ask())
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
    requests = select.poll()
    requests.register(0, 0)
    if requests.poll(0):  # the other end is closed: it died before we asked
        os._exit(1)


def _die_with(parent: int, how: signal.Signals) -> None:
    if LINUX:
        _process_control(SET_PARENT_DEATH_SIGNAL, how)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _process_control(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _ask(*_: object) -> None:
    """Raises once: who is asked again is ending the descendants already."""
    if not _asked:
        _asked.append(True)
        raise Asked


def _own_descriptors() -> tuple[int, int]:
    """Pipes of the protocol, moved away from where prints, input() and C libraries reach."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        with contextlib.suppress(OSError):
            os.fstat(standard)
            continue
        os.dup2(null, standard)
    requests, replies = os.dup(0), os.dup(1)
    os.dup2(null, 0)
    os.dup2(2, 1)
    return requests, replies


def _module(place: str) -> Any:
    """A module by its place beside this one, under a name that no module of a user has.

    The package is not imported: a worker is to be ready in milliseconds.
    """
    path = Path(__file__).parent / f"{place}.py"
    name = f"_lmpg_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
