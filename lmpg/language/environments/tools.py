"""Tools as an environment: what the policy's turns call is run, and its results are observed.

It imports nothing that is slow, so that a worker process is ready in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from lmpg.language.environments.tool_calls import ToolCall, calls_in
from lmpg.language.rewards.worker import described, load

LONGEST_RESULT = 100_000  # characters
_JSON_TYPES: dict[str, Any] = {
    "integer": int,
    "number": (int, float),
    "string": str,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}
_loaded = functools.cache(load)  # a file is run once, however many episodes there are


class ToolEnvironment:
    """An episode with tools: a turn that calls some goes on with their results, another one ends
    it, or goes to the environment `inner`.

    tools: functions, or specs of functions, plain or async. schemas: of each tool. seconds: that
    the calls of a turn may take. interrupts: whether a call can be cut short by a signal. is_chat:
    whether prompts that are text become chats.

    Whatever is wrong with a call is what the policy observes: a call that cannot be read, an
    unknown tool, wrong arguments, an exception, no end.
    """

    def __init__(
        self,
        tools: list[Any],
        schemas: list[dict[str, Any]],
        call_format: str,
        seconds: float,
        inner: Any = None,
        interrupts: bool = False,
        is_chat: bool = False,
    ):
        found = [_loaded(tool) if isinstance(tool, str) else tool for tool in tools]
        self._schemas = {x["function"]["name"]: x["function"] for x in schemas}
        self._tools: dict[str, Callable] = dict(zip(self._schemas, found, strict=True))
        self._format, self._seconds = call_format, seconds
        self._interrupts, self._is_chat = interrupts, is_chat
        self._inner = _made(inner)
        self._number = 0
        # what the template does not write is said in the prompt
        self.tools = schemas if call_format != "fenced" else None

    def reset(self, *, seed: int, options: dict[str, Any]) -> Any:
        """The row's own prompt, or what the inner environment begins with."""
        if self._inner is None:
            return self._opened((options.get("prompt"), {}))
        return _then(self._inner.reset(seed=seed, options=options), self._opened)

    def step(self, action: str) -> Any:
        """The results of the tools that a turn calls; without calls what the inner environment
        replies, or the end."""
        calls = calls_in(action, self._format)
        if not calls:
            return ("", 0.0, True, False, {}) if self._inner is None else self._inner.step(action)
        numbered = [(call, self._next_id()) for call in calls]
        if any(inspect.iscoroutinefunction(self._tools.get(c.get("name", ""))) for c in calls):
            return self._step_later(numbered)
        return self._observed(numbered, [self._result(x, len(calls)) for x in calls])

    def close(self) -> Any:
        """Closes the inner environment; what is to be awaited where that is async."""
        close = getattr(self._inner, "close", None)
        return close() if callable(close) else None

    async def _step_later(self, calls: list[tuple[ToolCall, str]]) -> Any:
        import asyncio

        async def one(call: ToolCall) -> str:
            result = self._called(call)
            if not inspect.isawaitable(result):
                return _as_text(result)
            try:
                return _as_text(await asyncio.wait_for(result, self._seconds))
            except TimeoutError:
                return _slow(self._seconds)
            except Exception as error:
                return f"error: {described(error)}"

        texts = await asyncio.gather(*(one(call) for call, _ in calls))
        return self._observed(calls, list(texts))

    def _result(self, call: ToolCall, count: int) -> str:
        """What one of `count` calls gives, within its share of the time."""
        seconds = self._seconds / count
        try:
            with _deadline(seconds if self._interrupts else None):
                return _as_text(self._called(call))
        except _Slow:
            return _slow(seconds)

    def _called(self, call: ToolCall) -> Any:
        """What a call gives, or a text that says what is wrong with it."""
        if "problem" in call:
            return f"error: {call['problem']}"
        tool = self._tools.get(call["name"])
        if tool is None:
            known = ", ".join(self._tools)
            return f"error: there is no tool {call['name']!r}, expected one of {known}"
        try:
            if problem := self._misfit(call, tool):
                return f"error: {problem}"
            return tool(**call["arguments"])
        except _Slow:
            raise
        except (Exception, SystemExit) as error:
            return f"error: {described(error)}"

    def _misfit(self, call: ToolCall, tool: Callable) -> str | None:
        """What is wrong with the arguments of a call; None where they fit."""
        name, arguments = call["name"], call["arguments"]
        try:
            inspect.signature(tool).bind(**arguments)
        except TypeError as error:
            return f"{name}{inspect.signature(tool)}: {error}"
        properties = self._schemas[name].get("parameters", {}).get("properties", {})
        for key, value in arguments.items():
            expected = properties.get(key, {}).get("type")
            kinds = [expected] if isinstance(expected, str) else expected or []
            if kinds and all(kind in _JSON_TYPES and not _is_a(value, kind) for kind in kinds):
                return f"{name}: {key} = {json.dumps(value)[:80]}, expected {' or '.join(kinds)}"
        return None

    def _next_id(self) -> str:
        """An id of nine characters, as Mistral's template wants it."""
        self._number += 1
        return call_id(self._number)

    def _observed(self, calls: list[tuple[ToolCall, str]], texts: list[str]) -> Any:
        """What a step returns: results as messages of tools, or as text where the template has no
        such role."""
        made = [as_object(call, name) for call, name in calls]
        info = {"tool_calls": made, "tool_errors": sum(x.startswith("error: ") for x in texts)}
        unread = all("problem" in call for call, _ in calls)
        observation: Any
        if self._format == "fenced":
            blocks = "\n".join(f"```output\n{text}\n```" for text in texts)
            observation = f"{blocks}" if self._is_chat else f"\n{blocks}\n"
        elif self._format == "mistral" and unread:  # a result there answers a call
            observation = "\n".join(texts)
        else:
            observation = [
                {"role": "tool", "name": x["function"]["name"], "tool_call_id": x["id"], **content}
                for x, content in zip(made, ({"content": text} for text in texts))
            ]
        return observation, 0.0, False, False, info

    def _opened(self, value: Any) -> Any:
        """What a reset returns: with what the template does not say of the tools in its prompt."""
        if not isinstance(value, tuple) or len(value) != 2 or not value[0]:
            return value
        prompt, info = value
        if self._format != "fenced":
            return _as_chat(prompt), info
        told = told_of(list(self._schemas.values()))
        if isinstance(prompt, str):
            return f"{told}\n\n{prompt}", info
        self._is_chat = True
        first = next((i for i, x in enumerate(prompt) if x.get("role") == "user"), None)
        if first is None:
            return [{"role": "user", "content": told}, *prompt], info
        said = {**prompt[first], "content": f"{told}\n\n{prompt[first].get('content') or ''}"}
        return [*prompt[:first], said, *prompt[first + 1 :]], info


class _Slow(BaseException):
    """A tool took longer than it may; no `except Exception` of its own stops this."""


def call_id(number: int) -> str:
    """The id of an episode's call, counted from 1."""
    return f"call{number:05d}"


def as_object(call: ToolCall, name: str) -> dict[str, Any]:
    """A call as messages have it under `tool_calls`; one that cannot be read is called so."""
    function = {"name": call.get("name", "unreadable"), "arguments": call.get("arguments", {})}
    return {"id": name, "type": "function", "function": function}


def told_of(schemas: list[dict[str, Any]]) -> str:
    """What a policy is told of tools whose template has no place for them."""
    listed = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
    return (
        f"You can call these tools:\n{listed}\n\nTo call one, write a block such as\n"
        '```tool_call\n{"name": "...", "arguments": {...}}\n```\n'
        "and end your turn; its result comes next. A turn without a call is your answer."
    )


def _as_chat(prompt: Any) -> Any:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _slow(seconds: float) -> str:
    return f"error: no result within {seconds:g} s"


@contextlib.contextmanager
def _deadline(seconds: float | None) -> Iterator[None]:
    """Raises `_Slow` in the block after so many seconds; None lets it take its time."""
    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _interrupt(*_: object) -> None:
    raise _Slow


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _JSON_TYPES[kind])


def _as_text(result: Any) -> str:
    """A result as the policy reads it."""
    try:
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = str(result)
    if len(text) <= LONGEST_RESULT:
        return str(text)
    return f"{text[:LONGEST_RESULT]}... (cut, of {len(text)} characters)"


def _made(inner: Any) -> Any:
    """The inner environment, from a function or a spec with arguments; None for none."""
    if isinstance(inner, dict):
        return _loaded(inner["spec"])(**inner["arguments"])
    return None if inner is None else inner()


def _then(value: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of a value that may still be awaited."""
    if not inspect.isawaitable(value):
        return function(value)

    async def later(waiting: Awaitable = value) -> Any:
        return function(await waiting)

    return later()
