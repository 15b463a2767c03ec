"""The process in which code of the user's runs, as a reward function: JSON lines in and out.

The supervisor forks it. It imports nothing but the standard library, so that it is ready in a few
milliseconds. First line in: {"id", "spec", "arguments", "server", "sys_path", "sources"}; first
line out: {"id", "parameters", "required", "options", "keywords"} or {"id", "error"}. Then, per
call, in: {"id", "arguments", "count", "of_trainer"}; out: {"id", "scores", "problems"} (a score, a
list of them or null each, and what was wrong with which; "extras" and "metrics" where the function
logs some) or {"id", "error"}. "sources" has what was read from local files. A reply has its
request's id and a line of its own, so that whatever else comes through the pipe is told apart. A
function may fork: only this process replies. "server" names a module that serves something else:
its `serving(hello, load, run)` gives what to reply first, and to each request.

What the function prints goes to stderr, and its stdin is empty: the protocol has descriptors
of its own. It may close or replace them, and what this module calls (`json.dumps`), too.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Set
from itertools import islice
from math import isfinite
from typing import Any

LONGEST_MESSAGE, MOST_FRAMES = 300, 100
NO_NUMBERS = (str, bytes, bytearray, memoryview)
SIGNALS = {str(128 + number) for number in (1, 2, 15)}
"""Exit codes by which a signal ends the whole program, while code of the user's runs."""
_encoded = json.JSONEncoder().encode  # bound now: a function may replace what it finds in modules
_decoded = json.JSONDecoder().decode
_write, _pid = os.write, os.getpid


def serve(
    requests: int,
    replies: int,
    keep: Callable[[dict], dict],
    trainer_arguments: Callable[..., tuple],
) -> None:
    """Serves calls until `requests` ends. keep: see `local_sources`."""
    own, mend = _pid(), _mender()
    os.register_at_fork(after_in_child=lambda: _close(requests, replies))
    with open(requests, "rb", closefd=False) as lines:
        hello = _decoded((lines.readline() or b"null").decode())
        if hello is None:
            return
        sys.path[:] = hello["sys_path"]
        read = keep(hello["sources"])

        def reply(request: dict, work: Callable[[], dict]) -> None:
            mend()
            try:
                message = work()
            except BaseException as error:  # also SystemExit: the worker outlives its function
                message = {"error": described(error)}
            if _pid() != own:  # a child that the function has forked, and that came back
                os._exit(0)
            _send(replies, {**message, "id": request["id"], "sources": read})
            read.clear()

        if hello["server"] is None:
            start, work = _serving_function(hello, _runner(), trainer_arguments)
        else:
            server = importlib.import_module(hello["server"])
            start, work = server.serving(hello, load, _runner())
        reply(hello, start)
        for line in lines:
            request = _decoded(line.decode())
            reply(request, functools.partial(work, request))


def _serving_function(
    hello: dict, run: Callable[[Any], Any], trainer_arguments: Callable[..., tuple]
) -> tuple[Callable[[], dict], Callable[[dict], dict]]:
    """What to reply first, and to each request, for a reward function."""
    function: Callable = _nothing

    def start() -> dict[str, Any]:
        nonlocal function
        function = functools.partial(load(hello["spec"]), **hello["arguments"])
        return signature(function.func, hello["arguments"])  # type: ignore[attr-defined]

    def work(request: dict) -> dict[str, Any]:
        more, logs = trainer_arguments(request["of_trainer"], request["count"])
        given = {**request["arguments"], **more}
        return {**answer(function, given, request["count"], run), **logs}

    return start, work


def load(spec: str) -> Callable:
    """The function that `FILE.py:NAME` or `package.module:NAME` names."""
    source, _, name = spec.rpartition(":")
    module = _from_file(source) if source.endswith(".py") else importlib.import_module(source)
    if not hasattr(module, name):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else f" It has: {', '.join(names) or 'none'}."
        raise AttributeError(f"{source} has no function or class {name!r}.{hint}")
    function = getattr(module, name)
    if not callable(function):
        kind = type(function).__name__
        raise TypeError(f"{name} in {source} is a {kind}, expected a function or a class")
    return function


def signature(function: Callable, fixed: dict[str, Any]) -> dict[str, Any]:
    """Names the function can be called with, those it must be, and whether it has **kwargs.

    fixed: arguments that the user has set; the function must know them.
    """
    parameters = inspect.signature(function).parameters.values()
    nameless = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    if nameless:
        raise TypeError(f"parameters are passed by name, but {nameless[0]!r} is positional-only")
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    keywords = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [name for name in fixed if name not in {p.name for p in named} and not keywords]
    if unknown:
        raise TypeError(f"it has no parameter {unknown[0]!r}. It has: {_listed(named)}")
    open_ = [p for p in named if p.name not in fixed]
    return {
        "parameters": [p.name for p in open_],
        "required": [p.name for p in open_ if p.default is p.empty],
        "options": [p.name for p in open_ if p.kind is p.KEYWORD_ONLY],
        "keywords": keywords,
    }


def _listed(parameters: list[inspect.Parameter]) -> str:
    return ", ".join(p.name for p in parameters) or "none"


def answer(
    function: Callable, arguments: dict, count: int, run: Callable[[Any], Any]
) -> dict[str, Any]:
    """Calls the function, waits for it with `run` if it is async; scores, and what is wrong."""
    result = function(**arguments)
    if inspect.isawaitable(result):
        result = run(result)
    if isinstance(result, (*NO_NUMBERS, Mapping, Set)) or not hasattr(result, "__len__"):
        raise TypeError(f"it returned a {type(result).__name__}, expected a list of numbers")
    if len(result) != count:
        return {"error": f"it returned {len(result)} scores for {count} completions"}
    results = [_checked(value) for value in islice(result, count)]
    problems = {i: problem for i, (_, problem) in enumerate(results) if problem}
    return {"scores": [score for score, _ in results], "problems": problems}


def described(error: BaseException) -> str:
    """Type, message, and the place in the user's file where it was raised."""
    try:
        text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    except BaseException:  # of its own __str__
        text = type(error).__name__
    text = text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "..."
    ours = os.path.join(os.path.dirname(os.path.dirname(__file__)), "environments")
    not_theirs = (__file__, ours, os.path.dirname(os.__file__), sys.prefix, "<frozen")
    stack = traceback.extract_tb(error.__traceback__, limit=-MOST_FRAMES)
    frames = [frame for frame in stack if not frame.filename.startswith(not_theirs)]
    if not frames or isinstance(error, SyntaxError):
        return text
    return f"{text} ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"


def _checked(value: Any) -> tuple[Any, str | None]:
    """A finite score or a list of them, or None and why."""
    try:
        while getattr(value, "ndim", 0) and len(value) == 1:
            (value,) = value  # an array of one element is a number
        if getattr(value, "ndim", 1) == 0:
            value = value.item()
        if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0:
            return _checked_list(list(value))
        if value is None:
            return None, None  # it declines: the response is for other rewards
        if isinstance(
            value, BaseException
        ):  # as asyncio.gather(..., return_exceptions=True) has it
            return None, described(value)
        if isinstance(value, NO_NUMBERS):
            return None, f"it returned a {type(value).__name__} among the scores"
        score = float(value)
    except BaseException as error:
        return None, f"it returned a {type(value).__name__} among the scores ({described(error)})"
    return (score, None) if isfinite(score) else (None, f"it returned {score}")


def _checked_list(numbers: list) -> tuple[list[float] | None, str | None]:
    """One finite number per token or step, or None and what was wrong with the first bad one."""
    scores: list[float] = []
    for value in numbers:
        nested = isinstance(value, (list, tuple))
        score, problem = (None, "it returned a list") if nested else _checked(value)
        if value is None:
            problem = "it returned None"
        if isinstance(score, list):
            score, problem = None, "it returned an array"
        if score is None:
            return None, f"{problem}, in a list of numbers for one completion"
        scores.append(float(score))
    return scores, None


def _from_file(path: str) -> Any:
    """The module in `path`; its folder is on sys.path, so it can import its neighbours."""
    folder, file = os.path.split(os.path.abspath(path))
    name = file.removesuffix(".py")
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"reward_file_{name}"
    sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _runner() -> Callable[[Any], Any]:
    """A function that waits for what is awaitable, always in the same loop while that is open."""
    runner: Any = None

    async def awaited(result: Any) -> Any:
        return await result

    def run(result: Any) -> Any:
        nonlocal runner
        import asyncio  # slow to import, and most functions are not async

        if runner is None or runner.get_loop().is_closed():
            runner = asyncio.Runner()
        return runner.run(awaited(result))

    return run


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _send(replies: int, message: dict) -> None:
    with contextlib.suppress(BaseException):  # whatever sys.stdout is now
        sys.stdout.flush()
    data = memoryview(f"\n{_encoded(message)}\n".encode())
    while data:
        data = data[_write(replies, data) :]


class _Console(io.FileIO):
    """Descriptor 1 or 2. A console that has gone away takes what is printed and loses it."""

    def write(self, data: Any) -> int:
        """Writes; all of it counts as written, whatever becomes of it."""
        with contextlib.suppress(OSError):
            if (written := super().write(data)) is not None:
                return written
        return len(data)


def _mender() -> Callable[[], None]:
    """A function that opens what a function has closed: descriptors 0 to 2, stdout and stderr."""
    kept = {0: os.dup(0), 1: os.dup(1), 2: os.dup(2)}
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"

    def mend() -> None:
        for standard, copy in kept.items():
            with contextlib.suppress(OSError):
                os.fstat(standard)
                continue
            os.dup2(copy, standard)
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            stream: Any = getattr(sys, name, None)
            if getattr(stream, "closed", True):
                raw = io.BufferedWriter(_Console(descriptor, "w", closefd=False))
                stream = io.TextIOWrapper(
                    raw, encoding, "backslashreplace", line_buffering=descriptor == 2
                )
                setattr(sys, name, stream)

    sys.stdout = sys.stderr = None  # type: ignore[assignment]
    return mend


def _nothing() -> None:
    """Stands for the function until it is loaded."""
