"""Environments of verifiers, whose rollouts ask the policy as they would a model behind an API."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from typing import Any

from lmpg.language.environments.adapters.background_loop import in_background
from lmpg.language.environments.tool_calls import FORMATS, calls_in
from lmpg.language.environments.tools import call_id

ENDED = "the rollout has ended"


class VerifiersRollout:
    """A rollout of the environment that `verifiers.load_environment(id, **arguments)` gives.

    The question is the one that the seed picks of its training data. Rewards come at the end, from
    its rubric. tool_format: how the policy writes calls of the environment's tools.
    """

    def __init__(self, id: str, tool_format: str = "hermes", **arguments: Any):
        if tool_format not in FORMATS:
            raise ValueError(f"tool_format = {tool_format!r}, expected one of {', '.join(FORMATS)}")
        self._environment = _loaded(id, json.dumps(arguments, sort_keys=True))
        self._format = tool_format
        self._said: list[Any] = []
        self._asked: asyncio.Queue = asyncio.Queue()
        self._answers: asyncio.Queue = asyncio.Queue()
        self._number = 0
        self.tools: list[dict[str, Any]] | None = None

    async def reset(self, *, seed: int, options: dict[str, Any]) -> Any:
        """The prompt."""
        return await in_background(lambda: self._begun(seed))

    async def step(self, action: str) -> Any:
        """What the rollout asks next, or its end and what its rubric gives."""
        return await in_background(lambda: self._next(action))

    async def close(self) -> None:
        """Ends the rollout."""
        await in_background(self._cancelled)

    async def _begun(self, seed: int) -> Any:
        data = self._environment.get_dataset()
        row = data[seed % len(data)]
        client = _client_class()(self)
        rollout = self._environment.rollout(row, client, "policy", {})
        self._rollout = asyncio.ensure_future(rollout)
        observed = await self._observed()
        if observed is None:
            raise ValueError(f"the rollout ended before it asked for anything: {self._failure()}")
        return observed, {"example": row.get("example_id", seed % len(data))}

    async def _next(self, action: str) -> Any:
        calls = [x for x in calls_in(action, self._format) if "problem" not in x]
        numbered = [(call, self._next_id()) for call in calls] if self.tools else []
        self._answers.put_nowait((action, numbered))
        observed = await self._observed()
        if observed is not None:
            return observed, 0.0, False, False, {}
        state = self._rollout.result()
        if state.get("error") is not None:
            raise ValueError(f"the rollout failed: {self._failure()}")
        await self._environment.rubric.score_rollout(state)
        cut = bool(state.get("is_truncated"))
        metrics = dict(state.get("metrics") or {})
        return "", float(state["reward"]), not cut, cut, {"metrics": metrics}

    async def _observed(self) -> Any:
        """The messages that the rollout adds to what it has asked before, None at its end."""
        asked = asyncio.ensure_future(self._asked.get())
        await asyncio.wait({asked, self._rollout}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            asked.cancel()
            return None
        messages, tools = asked.result()
        if self.tools is None and tools:
            self.tools = [_schema(tool) for tool in tools]
        before = len(self._said)
        if [_key(x) for x in messages[:before]] != [_key(x) for x in self._said]:
            raise ValueError(
                "the rollout changes what it has asked before, expected one that only adds messages"
            )
        # the policy's own turn stands between
        new = messages[before + 1 :] if before else messages
        self._said = messages
        return [_plain(message) for message in new]

    async def _cancelled(self) -> None:
        rollout = getattr(self, "_rollout", None)
        if rollout is not None and not rollout.done():
            rollout.cancel()
            await asyncio.wait({rollout})  # for what it does at its end

    def _failure(self) -> str:
        state = self._rollout.result()
        return f"{state.get('error') or state.get('stop_condition') or ENDED}"

    def _next_id(self) -> str:
        self._number += 1
        return call_id(self._number)

    async def answer(self, messages: list[Any], tools: list[Any] | None) -> tuple[str, list]:
        """Asks the policy, from inside the rollout: its text, and its calls with an id each."""
        self._asked.put_nowait((messages, tools))
        return await self._answers.get()


@functools.cache
def _loaded(id: str, arguments: str) -> Any:
    """The environment, loaded once with its data."""
    try:
        import verifiers
    except ImportError as error:
        raise ImportError(
            f"verifiers is not installed: pip install 'lmpg[verifiers]' ({error})"
        ) from None
    if not hasattr(verifiers, "load_environment"):
        raise ImportError(
            f"verifiers {verifiers.__version__} has no load_environment, expected a version below "
            "0.2: pip install 'lmpg[verifiers]'"
        )
    return verifiers.load_environment(id, **json.loads(arguments))


@functools.cache
def _client_class() -> type:
    """The policy in the place of a model behind an API: a class of verifiers' clients, made here
    because it is theirs how its methods are called."""
    from verifiers.clients import Client

    async def asked(
        self: Any, prompt: Any, model: str, args: Any, tools: Any = None, **_: Any
    ) -> Any:
        return await self._client.answer(prompt, tools)

    async def unchanged(self: Any, value: Any) -> Any:
        return value

    async def as_prompt(self: Any, messages: Any) -> tuple[Any, dict]:
        return list(messages), {}

    async def response(self: Any, answer: Any) -> Any:
        return _response(*answer)

    async def nothing(self: Any, *_: Any) -> None:
        pass

    methods = {
        "setup_client": lambda self, config: config,
        "to_native_tool": unchanged,
        "to_native_prompt": as_prompt,
        "get_native_response": asked,
        "raise_from_native_response": nothing,
        "from_native_response": response,
        "close": nothing,
    }
    return type("Policy", (Client,), methods)


def _response(text: str, calls: list[tuple[dict[str, Any], str]]) -> Any:
    """A turn of the policy as verifiers reads it."""
    from verifiers.types import Response, ResponseMessage, ToolCall

    made = [
        ToolCall(id=name, name=call["name"], arguments=json.dumps(call["arguments"]))
        for call, name in calls
    ]
    message = ResponseMessage(
        content=text,
        tool_calls=made or None,
        finish_reason="tool_calls" if made else "stop",
        is_truncated=False,
    )
    return Response(id="", created=int(time.time()), model="policy", message=message)


def _plain(message: Any) -> dict[str, Any]:
    """A message as a chat template reads it."""
    found = message.model_dump(exclude_none=True) if hasattr(message, "model_dump") else message
    return {
        k: x for k, x in dict(found).items() if k in ("role", "content", "name", "tool_call_id")
    }


def _key(message: Any) -> tuple[Any, ...]:
    return tuple(sorted((k, str(x)) for k, x in _plain(message).items()))


def _schema(tool: Any) -> dict[str, Any]:
    """A tool as chat templates get it."""
    names = ("name", "description", "parameters")
    return {"type": "function", "function": {name: getattr(tool, name) for name in names}}
