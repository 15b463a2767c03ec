"""Episodes of a user's environments, row by row, as plain data: what a worker process serves.

It imports nothing but the standard library and what the worker has, so that a worker is ready in a
few milliseconds. A call is {"row", "seed", "options"} (reset) or {"row", "action"} (step); its
outcome has "observation", "reward", "terminated", "truncated" and "info" (and "tools", of a reset
where there are some), or "error" (and "nonsense", where it is what was returned); {"lost": true}
where the row's environment is not here, {"later": true} where the calls before it took so long that
it is to be asked for again.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import numbers
import time
from collections.abc import Awaitable, Callable
from typing import Any

from lmpg.language.rewards.worker import SIGNALS, described

LONGEST_OBSERVATION = 1 << 20  # characters; no context holds as many
LONGEST_INFO = 10_000  # characters of a value of info
TOGETHER = 0.25  # seconds of calls in one reply, so that one which hangs is soon known
LOST, LATER = {"lost": True}, {"later": True}
Call = dict[str, Any]
Result = dict[str, Any]
Run = Callable[[Awaitable], Any]
"""Waits for something awaitable and returns what it gives."""


class Episodes:
    """The episodes of several rows, each with an environment of its own.

    make: makes an environment. run: see `Run`.
    """

    def __init__(self, make: Callable[[], Any], run: Run):
        self._make, self._run = make, run
        self._rows: dict[int, Any] = {}

    def outcomes(self, calls: list[Call], timeout: float) -> list[Result]:
        """The outcomes of calls, in their order; async ones go on at the same time, each for at
        most `timeout` seconds."""
        started, begun = time.monotonic(), list[tuple[Any, BaseException | None]]()
        for call in calls:
            over = begun and time.monotonic() - started > TOGETHER
            begun.append((LATER, None) if over else self._begun(call))
        waiting = [i for i, (value, _) in enumerate(begun) if inspect.isawaitable(value)]
        if waiting:
            values = self._run(_together([begun[i][0] for i in waiting], timeout))
            for i, value in zip(waiting, values):
                begun[i] = (None, value) if isinstance(value, BaseException) else (value, None)
        return [self._ended(call, timeout, *found) for call, found in zip(calls, begun)]

    def forget(self) -> None:
        """Ends all episodes."""
        for row in list(self._rows):
            self._forget(row)

    def _begun(self, call: Call) -> tuple[Any, BaseException | None]:
        row = call["row"]
        try:
            if "action" in call:
                if row not in self._rows:
                    return LOST, None
                return self._rows[row].step(call["action"]), None
            self._forget(row)
            environment = self._rows[row] = self._make()
            return environment.reset(seed=call["seed"], options=call["options"]), None
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and str(error.code) in SIGNALS:
                raise
            return None, error

    def _ended(self, call: Call, timeout: float, value: Any, error: BaseException | None) -> Result:
        if value is LOST or value is LATER:
            return value
        name = "step" if "action" in call else "reset"
        if error is None:
            try:
                return self._checked(call, value)
            except Exception as problem:
                found = {"error": f"{name} returned {problem}", "nonsense": True}
        elif isinstance(error, TimeoutError) and not str(error):
            found = {"error": slow(name, timeout)}
        else:
            found = {"error": f"{name} raised {described(error)}"}
        self._forget(call["row"])
        return found

    def _checked(self, call: Call, value: Any) -> Result:
        if "action" in call:
            result = checked_step(value)
            if result["terminated"] or result["truncated"]:
                self._forget(call["row"])
            return result
        environment = self._rows[call["row"]]
        result = checked_reset(value)
        if tools := getattr(environment, "tools", None):
            result["tools"] = _as_json(list(tools), "tools that are")
        return result

    def _forget(self, row: int) -> None:
        environment = self._rows.pop(row, None)
        close = getattr(environment, "close", None)
        if callable(close):
            with contextlib.suppress(Exception):
                if inspect.isawaitable(closing := close()):
                    self._run(closing)


def slow(name: str, timeout: float) -> str:
    """What to say of a call without an end."""
    return f"{name} gave no reply within environment.timeout of {timeout:g} s"


def checked_reset(value: Any) -> Result:
    """The outcome of a reset; TypeError or ValueError, as what follows "returned", for nonsense."""
    observation, info = _parts(value, 2, "(observation, info)")
    observation = "" if observation is None else observation
    flags = {"reward": 0.0, "terminated": False, "truncated": False}
    return {"observation": _observation(observation), **flags, "info": _info(info)}


def checked_step(value: Any) -> Result:
    """The outcome of a step; errors as of `checked_reset`."""
    expected = "(observation, reward, terminated, truncated, info)"
    observation, reward, terminated, truncated, info = _parts(value, 5, expected)
    ends = {
        "terminated": _flag(terminated, "terminated"),
        "truncated": _flag(truncated, "truncated"),
    }
    observation = "" if observation is None and any(ends.values()) else observation
    return {
        "observation": _observation(observation),
        "reward": _reward(reward),
        **ends,
        "info": _info(info),
    }


def _parts(value: Any, count: int, expected: str) -> tuple:
    if not isinstance(value, tuple | list):
        raise TypeError(f"a {type(value).__name__}, expected {expected}")
    if len(value) != count:
        raise TypeError(f"{len(value)} values, expected {expected}")
    return tuple(value)


def _observation(value: Any) -> Any:
    """Text, or messages as JSON has them."""
    if isinstance(value, str):
        _refuse_endless(len(value))
        return str(value)
    is_chat = isinstance(value, list) and value and all(isinstance(x, dict) for x in value)
    if not is_chat:
        raise TypeError(
            f"a {type(value).__name__} as observation, expected text, or chat messages such as "
            '[{"role": "user", "content": "..."}]'
        )
    _refuse_endless(sum(len(x["content"]) for x in value if isinstance(x.get("content"), str)))
    return _as_json(value, "an observation that is")


def _refuse_endless(count: int) -> None:
    if count > LONGEST_OBSERVATION:
        raise ValueError(
            f"an observation of {count} characters, expected at most {LONGEST_OBSERVATION}"
        )


def _as_json(value: Any, what: str) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{what} no JSON: {error}") from None


def _reward(value: Any) -> float:
    plain = value.item() if hasattr(value, "item") else value
    if not isinstance(plain, numbers.Real):
        raise TypeError(f"a {type(value).__name__} as reward, expected a number")
    if not math.isfinite(plain):
        raise ValueError(f"the reward {float(plain)}, expected a finite number")
    return float(plain)


def _flag(value: Any, name: str) -> bool:
    plain = value.item() if hasattr(value, "item") else value
    if not isinstance(plain, bool):
        raise TypeError(f"a {type(value).__name__} as {name}, expected True or False")
    return plain


def _info(value: Any) -> dict[str, Any]:
    """Info as JSON has it; what is long is there as the start of its text, and what cannot be
    written as its kind."""
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} as info, expected a dict")
    return {str(key): _short(inner) for key, inner in value.items()}


def _short(value: Any) -> Any:
    try:
        plain = value.tolist() if hasattr(value, "tolist") else value
        text = json.dumps(plain, allow_nan=False)
    except Exception:
        return f"a {type(value).__name__}"
    return json.loads(text) if len(text) <= LONGEST_INFO else text[:LONGEST_INFO]


async def _together(awaitables: list[Any], timeout: float) -> list[Any]:
    """What all of them give, or the exceptions that they raise."""
    import asyncio  # slow to import, and most environments are not async

    waits = [asyncio.wait_for(x, timeout) for x in awaitables]
    return await asyncio.gather(*waits, return_exceptions=True)


def serving(
    hello: dict[str, Any], load: Callable[[str], Callable], run: Run
) -> tuple[Callable[[], Result], Callable[[Result], Result]]:
    """What a worker does first, and what it does with a request: see `worker.serve`."""
    episodes: list[Episodes] = []

    def start() -> Result:
        make = functools.partial(load(hello["spec"]), **hello["arguments"])
        tried(make)
        episodes.append(Episodes(make, run))
        return {"ready": True}

    def work(request: Result) -> Result:
        if request["fresh"]:
            episodes[0].forget()
        return {"outcomes": episodes[0].outcomes(request["calls"], request["timeout"])}

    return start, work


def tried(make: Callable[[], Any]) -> None:
    """Makes an environment to see that it can be made; TypeError where it lacks a method, or where
    one cannot be called as it will be."""
    environment = make()
    calls = {"reset(seed, options)": ([], {"seed": 0, "options": {}}), "step(action)": ([""], {})}
    for name, (args, named) in calls.items():
        method = getattr(environment, name.partition("(")[0], None)
        if not callable(method):
            raise TypeError(f"a {type(environment).__name__} has no method {name}")
        with contextlib.suppress(ValueError):  # what has no signature may still be called
            signature = inspect.signature(method)
            try:
                signature.bind(*args, **named)
            except TypeError as error:
                raise TypeError(f"it cannot be called as {name}: {error}") from None
    close = getattr(environment, "close", None)
    if callable(close) and not inspect.iscoroutinefunction(close):
        closing = close()
        if inspect.iscoroutine(closing):  # nothing has been opened yet
            closing.close()
