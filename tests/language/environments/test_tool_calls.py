"""Calls of tools are read as the chat templates of their models write them."""

from __future__ import annotations

import json

import pytest

from lmpg.language.environments.tool_calls import calls_in, format_of
from tests.support.planted import catches
from tests.support.templates import TOOL_TEMPLATES

ADD = {"name": "add", "arguments": {"a": 1, "b": 2}}
JSON, OTHER = json.dumps(ADD), '{"name": "add", "parameters": {"a": 1, "b": 2}}'


@pytest.mark.parametrize(
    ("call_format", "text", "count"),
    [
        ("hermes", f"I add.\n<tool_call>\n{JSON}\n</tool_call>", 1),
        ("hermes", f"<tool_call>{JSON}</tool_call>\n<tool_call>{JSON}</tool_call>", 2),
        ("hermes", f"<think><tool_call>x</think><tool_call>{JSON}", 1),  # ended by EOS
        ("llama3", OTHER, 1),
        ("llama3", f"<|python_tag|>{OTHER}; {OTHER}", 2),
        ("llama3", "The sum is 3.", 0),
        ("llama3", '{"sum": 3}', 0),  # an answer that is JSON
        ("mistral", f"[TOOL_CALLS][{JSON}]", 1),
        ("mistral", f"[TOOL_CALLS] [{JSON}, {JSON}]</s>", 2),
        ("mistral", '[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}', 1),
        ("mistral", f"Not a call: {JSON}", 0),
        ("fenced", f"So:\n```tool_call\n{JSON}\n```", 1),
        ("fenced", f"```json\n{JSON}\n```\n```json\n[1, 2]\n```", 1),
        ("fenced", f"```python\n{JSON}\n```", 0),
        ("hermes", JSON, 0),
    ],
)
@catches("calls in thinking run", "every JSON taken for a call")
def test_calls_are_found_in_their_format_and_nowhere_else(call_format, text, count):
    assert calls_in(text, call_format) == [ADD] * count


@pytest.mark.parametrize(
    ("call_format", "text", "problem"),
    [
        ("hermes", '<tool_call>{"name": "add", </tool_call>', "cannot be read"),
        ("hermes", "<tool_call>add(1, 2)</tool_call>", "Expecting value"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', "it has no name"),
        ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "are no object"),
        ("hermes", "<tool_call>" + "[" * 100_000, "cannot be read"),
        ("llama3", '{"name": "add", "parameters": {"a": 1', "cannot be read"),
        ("llama3", "<|python_tag|>add(1, 2)", "cannot be read"),
        ("mistral", "[TOOL_CALLS] add(1, 2)", "cannot be read"),
        ("fenced", "```tool_call\nadd(1, 2)\n```", "in a block marked tool_call"),
    ],
)
@catches("a malformed call passed over as an answer")
def test_what_looks_like_a_call_and_is_none_is_told(call_format, text, problem):
    (call,) = calls_in(text, call_format)
    assert problem in call["problem"]


def test_arguments_may_be_missing_or_json_in_a_text():
    written = json.dumps({"name": "add", "arguments": json.dumps(ADD["arguments"])})
    assert calls_in(f"<tool_call>{written}</tool_call>", "hermes") == [ADD]
    bare = calls_in('<tool_call>{"name": "now"}</tool_call>', "hermes")
    assert bare == [{"name": "now", "arguments": {}}]


def test_the_format_is_that_of_the_template():
    for name, template in TOOL_TEMPLATES.items():
        assert format_of(template) == name
    assert format_of("{{ messages }}") is None
    assert format_of(None) is None
