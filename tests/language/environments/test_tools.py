"""Tools: their schemas, their calls, their results, and all that a policy can do wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmpg.language.data.settings import DataSettings
from lmpg.language.data.tokenizing import chat_ids, encode
from lmpg.language.environments.opening import call_format_of, continuation_of, pool_of
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.language.environments.tool_schemas import schemas_of
from lmpg.language.environments.tools import ToolEnvironment
from lmpg.settings.section import UserError
from tests.support.chats import assistant, user
from tests.support.planted import catches
from tests.support.programs import module_at
from tests.support.templates import TOOL_TEMPLATES, family_tokenizer

TOOLS = '''
import asyncio, time

def add(a: int, b: int) -> int:
    """
    Adds two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b

def divide(a: float, b: float = 0.0):
    """
    Divides.

    Args:
        a: what is divided
        b: by what
    """
    return a / b

def sleep():
    """Sleeps."""
    time.sleep(60)

async def later(text: str):
    """
    Echoes.

    Args:
        text: what to echo
    """
    await asyncio.sleep(60 if text == "never" else 0.05)
    return {"echo": text}

def bare(x): return x

class Quiz:
    def reset(self, *, seed, options):
        return f"{options['question']}", {"state": "asked"}

    def step(self, action):
        return "no", float(action == "4"), action == "4", False, {}
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(TOOLS)
    return path


def call(name: str, **arguments) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def environment(mine, *names: str, call_format: str = "hermes", **how) -> ToolEnvironment:
    tools = [getattr(module_at(mine), name) for name in names]
    return ToolEnvironment(tools, schemas_of(tools), call_format, 5.0, **how)


@catches("an unknown tool ends the episode", "arguments of a wrong type handed on")
def test_whatever_is_wrong_with_a_call_is_what_the_policy_observes(mine):
    tools = environment(mine, "add", "divide")
    tools.reset(seed=0, options={"prompt": "1 + 2?"})
    expected = {
        call("add", a=1, b=2): "3",
        call("sub", a=1, b=2): "error: there is no tool 'sub', expected one of add, divide",
        call("add", a=1): "error: add(a: int, b: int) -> int: missing a required argument: 'b'",
        call("add", a="1", b=2): 'error: add: a = "1", expected integer',
        call("add", a=True, b=2): "error: add: a = true, expected integer",
        call("divide", a=1): "error: ZeroDivisionError: float division by zero (mine.py, line 22)",
        "<tool_call>add(1, 2)</tool_call>": "error: the call cannot be read (Expecting value: line",
    }
    for turn, text in expected.items():
        observation, reward, terminated, truncated, info = tools.step(turn)
        assert observation[0]["content"].startswith(text), (turn, observation)
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert info["tool_errors"] == text.startswith("error")
    assert tools.step("It is 3.")[2]


def test_several_calls_of_a_turn_have_a_result_each_in_their_order(mine):
    tools = environment(mine, "add")
    observed, *_, info = tools.step(call("add", a=1, b=1) + call("add", a=2, b=2))
    assert [x["content"] for x in observed] == ["2", "4"]
    assert [x["tool_call_id"] for x in observed] == [x["id"] for x in info["tool_calls"]]
    assert [x["function"]["arguments"]["a"] for x in info["tool_calls"]] == [1, 2]


@pytest.mark.slow
def test_tools_of_files_run_in_a_worker_and_a_slow_one_is_told_to_the_policy(mine):
    settings = EnvironmentSettings(
        tools=tuple(f"{mine}:{name}" for name in ("add", "sleep", "later")), timeout=0.5
    )
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = TOOL_TEMPLATES["hermes"]
    with pool_of(settings, tokenizer, DataSettings()) as pool:
        first = pool.reset([{"prompt": "Add."}] * 4, [0] * 4)
        assert [x["function"]["name"] for x in first[0].tools] == ["add", "sleep", "later"]
        assert first[0].tools[0]["function"]["description"] == "Adds two numbers."
        turns = [call("add", a=1, b=2), call("sleep"), call("later", text="x"), "3"]
        outcomes = pool.step(dict(enumerate(turns)))
        assert [x.error for x in outcomes.values()] == [None] * 4
        said = [x.observation[0]["content"] for x in list(outcomes.values())[:3]]
        assert said == ["3", "error: no result within 0.45 s", '{"echo": "x"}']
        assert outcomes[3].terminated
        late = pool.step({2: call("later", text="never")})
        assert late[2].observation[0]["content"] == "error: no result within 0.45 s"
        continuation = continuation_of(settings, tokenizer, DataSettings(), [0])
        prompt = tokenizer.decode(continuation.first(first[0]))
        assert "Adds two numbers." in prompt


def test_turns_without_a_call_go_to_the_environment_beside_the_tools(mine):
    given = {f"memory:{name}": getattr(module_at(mine), name) for name in ("add", "Quiz")}
    settings = EnvironmentSettings(path="memory:Quiz", tools=("memory:add",))
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = TOOL_TEMPLATES["hermes"]
    with pool_of(settings, tokenizer, DataSettings(), given) as pool:
        (first,) = pool.reset([{"question": "2 + 2?"}], [0])
        assert (first.observation, first.info) == ([user("2 + 2?")], {"state": "asked"})
        assert pool.step({0: call("add", a=2, b=2)})[0].observation[0]["content"] == "4"
        wrong, right = pool.step({0: "5"})[0], pool.step({0: "4"})[0]
        assert (wrong.observation, wrong.terminated) == ("no", False)
        assert (right.reward, right.terminated) == (1.0, True)


@catches("an environment beside tools whose close is async stays open")
def test_an_environment_beside_tools_is_closed_though_that_is_async(mine):
    closed = []
    module = module_at(mine)

    class Leaving(module.Quiz):
        async def close(self):
            closed.append(True)

    given = {"memory:add": module.add, "memory:Leaving": Leaving}
    settings = EnvironmentSettings(path="memory:Leaving", tools=("memory:add",))
    with pool_of(settings, family_tokenizer("chatml"), DataSettings(), given) as pool:
        pool.reset([{"question": "2 + 2?"}], [0])
        assert closed == []
        assert pool.step({0: "4"})[0].terminated
    assert closed == [True]


def test_a_model_without_a_format_is_told_in_its_prompt_how_to_call(mine):
    tools = environment(mine, "add", call_format="fenced")
    text, _ = tools.reset(seed=0, options={"prompt": "1 + 2?"})
    assert '"Adds two numbers."' in text
    assert text.endswith("\n\n1 + 2?")
    turn = '```tool_call\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n```'
    assert tools.step(turn)[0] == "\n```output\n3\n```\n"
    chat, _ = tools.reset(seed=0, options={"prompt": [user("1 + 2?")]})
    assert chat[0]["content"] == text
    assert tools.tools is None
    assert tools.step(turn)[0] == "```output\n3\n```"


@pytest.mark.parametrize("call_format", TOOL_TEMPLATES)
@catches("results behind the text of a call that the template wants as an object")
def test_results_are_appended_as_the_template_writes_them(call_format, mine):
    tokenizer = family_tokenizer("chatml", more=("<s>", "</s>", "<|eot_id|>"))
    tokenizer.chat_template = TOOL_TEMPLATES[call_format]
    ends = ["<|im_end|>", "</s>", "<|eot_id|>"]
    end_ids = tokenizer.convert_tokens_to_ids(ends)
    given = {"memory:add": module_at(mine).add}
    settings = EnvironmentSettings(tools=("memory:add",))
    continuation = continuation_of(settings, tokenizer, DataSettings(), end_ids)
    with pool_of(settings, tokenizer, DataSettings(), given) as pool:
        (outcome,) = pool.reset([{"prompt": "Add."}], [0])
        so_far, ids = continuation.messages(outcome), continuation.first(outcome)
        whole, tools = list(so_far), outcome.tools
        for a in (1, 2, 3):
            turn = (TURNS[call_format] % json.dumps({"a": a, "b": 2})).replace("#", str(a))
            answer = [*encode(tokenizer, turn), tokenizer.convert_tokens_to_ids(ENDS[call_format])]
            (outcome,) = pool.step({0: turn}).values()
            so_far = [*so_far, assistant(turn)]
            ids += answer + continuation.after(so_far, answer, outcome)
            so_far += continuation.messages(outcome, so_far)
            objects = {"role": "assistant", "content": "", "tool_calls": outcome.info["tool_calls"]}
            whole += [objects if call_format == "mistral" else assistant(turn)]
            whole += outcome.observation
        assert ids == chat_ids(tokenizer, whole, {"tools": tools}, open_turn=True)
        for result in ("3", "4", "5"):
            assert tokenizer.decode(ids).count(RESULTS[call_format] % result) == 1


TURNS = {
    "hermes": '<tool_call>\n{"name": "add", "arguments": %s}\n</tool_call>',
    "llama3": '{"name": "add", "parameters": %s}',
    "mistral": '[TOOL_CALLS][{"name": "add", "arguments": %s, "id": "call0000#"}]',
}
ENDS = {"hermes": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>"}
RESULTS = {
    "hermes": "<tool_response>\n%s\n</tool_response>",
    "llama3": '<|start_header_id|>ipython<|end_header_id|>\n\n"%s"<|eot_id|>',
    "mistral": '[TOOL_RESULTS]{"content": %s, ',
}


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ("mine.py:ad", "has no function or class 'ad'. Did you mean add"),
        ("mine.py:add(a=1)", "sets a, but the arguments of a tool come with its calls"),
        ("add", "there is no built-in tool 'add'"),
    ],
)
def test_tools_that_cannot_be_called_are_refused_before_any_work(tool, message, mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    settings = EnvironmentSettings(tools=(tool,))
    with pytest.raises(UserError, match=f"environment.tools: .*{message}"):
        pool_of(settings, family_tokenizer("chatml"), DataSettings())


def test_a_tool_that_its_docstring_does_not_describe_is_refused(mine):
    module = module_at(mine)
    with pytest.raises(ValueError, match=r"bare cannot be described .*give each of its parameters"):
        schemas_of([module.bare])
    with pytest.raises(ValueError, match="two tools are called add; rename one"):
        schemas_of([module.add, module.add])


def test_the_format_of_calls_is_the_template_s_or_the_one_that_is_asked_for():
    tokenizer = family_tokenizer("chatml")
    settings = EnvironmentSettings(tools=("mine.py:add",))
    assert call_format_of(settings, tokenizer) == "fenced"
    tokenizer.chat_template = TOOL_TEMPLATES["mistral"]
    assert call_format_of(settings, tokenizer) == "mistral"
    asked = EnvironmentSettings(tools=("mine.py:add",), tool_format="hermes")
    assert call_format_of(asked, tokenizer) == "hermes"
