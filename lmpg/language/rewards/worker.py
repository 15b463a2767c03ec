"""The process in which one reward function of the user's runs: JSON lines in, JSON lines out.

It is started as a file of its own and imports nothing but the standard library, so that it is
ready in a few milliseconds. First line in: {"spec", "arguments", "sys_path", "parent"}; first
line out: {"parameters", "required", "options", "keywords"} or {"error"}. Then, per call, in:
{"arguments", "count"}; out: {"scores", "problems"} (a score, a list of them or null each, and
what was wrong with which) or {"error"}.

What the function prints goes to stderr, and its stdin is empty: the protocol has descriptors
of its own.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import importlib
import importlib.util
import inspect
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

LONGEST_MESSAGE = 300


def main() -> None:
    """Serves calls until stdin ends."""
    requests, replies = _own_descriptors()
    hello = json.loads(requests.readline() or "null")
    if hello is None:
        return
    _die_with(hello["parent"])
    sys.path[:] = hello["sys_path"]
    try:
        function = functools.partial(load(hello["spec"]), **hello["arguments"])
        reply = signature(function.func, hello["arguments"])
    except BaseException as error:
        _send(replies, {"error": described(error)})
        return
    _send(replies, reply)
    with asyncio.Runner() as runner:
        for line in requests:
            request = json.loads(line)
            _send(replies, answer(function, request["arguments"], request["count"], runner))


def load(spec: str) -> Callable:
    """The function that `FILE.py:NAME` or `package.module:NAME` names."""
    source, _, name = spec.rpartition(":")
    module = _from_file(source) if source.endswith(".py") else importlib.import_module(source)
    if not hasattr(module, name):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else f" It has: {', '.join(names) or 'none'}."
        raise AttributeError(f"{source} has no function {name!r}.{hint}")
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} in {source} is a {type(function).__name__}, not a function")
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
    function: Callable, arguments: dict, count: int, runner: asyncio.Runner
) -> dict[str, Any]:
    """Calls the function, and returns a reply, whatever it raises or returns."""
    try:
        result = function(**arguments)
        if inspect.isawaitable(result):
            result = runner.run(_awaited(result))
        results = _as_list(result)
    except BaseException as error:  # also SystemExit: the worker outlives its function
        return {"error": described(error)}
    if len(results) != count:
        return {"error": f"it returned {len(results)} scores for {count} completions"}
    scores, problems = [], {}
    for index, value in enumerate(results):
        score, problem = _checked(value)
        scores.append(score)
        if problem:
            problems[index] = problem
    return {"scores": scores, "problems": problems}


def described(error: BaseException) -> str:
    """Type, message, and the place in the user's file where it was raised."""
    text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    text = text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "..."
    not_theirs = (__file__, os.path.dirname(os.__file__), sys.prefix, "<frozen")
    stack = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in stack if not frame.filename.startswith(not_theirs)]
    if not frames or isinstance(error, SyntaxError):
        return text
    return f"{text} ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"


async def _awaited(result: Any) -> Any:
    return await result


def _as_list(result: Any) -> list:
    if isinstance(result, (str, bytes, dict)) or not hasattr(result, "__len__"):
        raise TypeError(f"it returned a {type(result).__name__}, expected a list of numbers")
    return list(result)


def _checked(value: Any) -> tuple[Any, str | None]:
    """A finite score or a list of them, or None and why."""
    if isinstance(value, (list, tuple)) or (getattr(value, "ndim", 0) == 1 and len(value) != 1):
        return _checked_list(list(value))
    if value is None:
        return None, "it returned None"
    if isinstance(value, Exception):  # as asyncio.gather(..., return_exceptions=True) gives it
        return None, described(value)
    if isinstance(value, (str, bytes)):
        return None, f"it returned a {type(value).__name__} among the scores"
    try:
        score = float(value)
    except Exception as error:
        return None, f"it returned a {type(value).__name__} among the scores ({error})"
    return (score, None) if math.isfinite(score) else (None, f"it returned {score}")


def _checked_list(numbers: list) -> tuple[list[float] | None, str | None]:
    """One finite number per token or step, or None and what was wrong with the first bad one."""
    scores: list[float] = []
    for value in numbers:
        nested = isinstance(value, (list, tuple))
        score, problem = (None, "it returned a list") if nested else _checked(value)
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


def _own_descriptors():
    """Pipes of the protocol, moved away from where prints, input() and C libraries reach."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    return requests, replies


def _send(replies: Any, message: dict) -> None:
    sys.stdout.flush()
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _die_with(parent: int) -> None:
    """Ends this process and its children when the trainer is killed, even amid a call (Linux).

    Elsewhere it notices at the end of the call, when stdin has ended.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    signal.signal(signal.SIGUSR2, lambda *_: os.killpg(0, signal.SIGKILL))
    ctypes.CDLL(None).prctl(1, signal.SIGUSR2)  # 1 = PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


if __name__ == "__main__":
    main()
