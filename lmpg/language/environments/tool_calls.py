"""Calls of tools in the text of a turn, by the formats that chat templates have for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

ToolCall = dict[str, Any]
"""{"name", "arguments"}, or {"problem"}: why what looks like a call is none."""
FORMATS = ("hermes", "llama3", "mistral", "fenced")
SHAPE = '{"name": "...", "arguments": {...}}'
PYTHON_TAG, MISTRAL_MARK, MISTRAL_ARGUMENTS = "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]"
_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FENCED = re.compile(r"```(tool_call|json)[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


def calls_in(text: str, call_format: str) -> list[ToolCall]:
    """The calls of a turn in their order, [] where it has none; what it has thought is left out."""
    said = text.rpartition("</think>")[2]
    readers = {"hermes": _hermes, "llama3": _llama3, "mistral": _mistral, "fenced": _fenced}
    return list(readers[call_format](said))


def format_of(template: str | None) -> str | None:
    """The format in which a chat template writes calls; None where it is none of the known."""
    marks = {"mistral": MISTRAL_MARK, "hermes": "<tool_call>", "llama3": "ipython"}
    found = (name for name, mark in marks.items() if template and mark in template)
    return next(found, None)


def _hermes(text: str) -> Iterator[ToolCall]:
    """<tool_call>{"name", "arguments"}</tool_call>, as Hermes and Qwen write it."""
    for match in _HERMES.finditer(text):
        yield _one(match[1], SHAPE + " between <tool_call> and </tool_call>")


def _fenced(text: str) -> Iterator[ToolCall]:
    """Blocks of code that hold JSON: each marked tool_call, and of those marked json the calls."""
    for match in _FENCED.finditer(text):
        call = _one(match[2], SHAPE + " in a block marked tool_call")
        if match[1] == "tool_call" or "problem" not in call:
            yield call


def _llama3(text: str) -> Iterator[ToolCall]:
    """A turn that is nothing but JSON, several divided by semicolons; marked or not."""
    _, marked, behind = text.rpartition(PYTHON_TAG)
    said = behind.strip()
    if not said.startswith("{") and not marked:
        return
    decoder, place, calls = json.JSONDecoder(), 0, list[ToolCall]()
    shape = '{"name": "...", "parameters": {...}}'
    while place < len(said):
        try:
            value, place = decoder.raw_decode(said, place)
        except (ValueError, RecursionError) as error:
            calls.append(_problem(error, shape))
            break
        calls.append(_checked(value, shape))
        place += len(said[place:]) - len(said[place:].lstrip("; \n\t"))
    if marked or any("problem" not in call for call in calls) or said.startswith('{"name"'):
        yield from calls


def _mistral(text: str) -> Iterator[ToolCall]:
    """[TOOL_CALLS] and a list of JSON, or name[ARGS]{...} behind each mark, as newer ones do."""
    _, mark, behind = text.partition(MISTRAL_MARK)
    if not mark:
        return
    shape = f"{MISTRAL_MARK}[{SHAPE}]"
    if MISTRAL_ARGUMENTS in behind:
        for part in behind.split(MISTRAL_MARK):
            name, _, arguments = part.partition(MISTRAL_ARGUMENTS)
            yield _one(json.dumps({"name": name.strip(), "arguments": arguments}), shape)
        return
    try:
        found, _ = json.JSONDecoder().raw_decode(behind.strip())
    except (ValueError, RecursionError) as error:
        yield _problem(error, shape)
        return
    for value in found if isinstance(found, list) else [found]:
        yield _checked(value, shape)


def _one(text: str, shape: str) -> ToolCall:
    try:
        return _checked(json.loads(text), shape)
    except (ValueError, RecursionError) as error:
        return _problem(error, shape)


def _checked(value: Any, shape: str) -> ToolCall:
    """The call that JSON holds; arguments may be JSON in a text, and may be missing."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return _problem("it has no name", shape)
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return _problem(error, shape)
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        return _problem("its arguments are no object", shape)
    return {"name": value["name"], "arguments": arguments}


def _problem(error: object, shape: str) -> ToolCall:
    return {"problem": f"the call cannot be read ({error}), expected {shape}"}
