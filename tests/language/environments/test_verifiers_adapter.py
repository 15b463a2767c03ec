"""Rollouts of verifiers ask the policy turn by turn: a double of the library's interface."""

from __future__ import annotations

import asyncio
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from lmpg.language.environments.adapters.verifiers_rollout import VerifiersRollout, _loaded
from tests.support.chats import user
from tests.support.planted import catches

TOOL = SimpleNamespace(name="add", description="Adds.", parameters={"type": "object"})


class Client:
    """The base class of the library's clients."""

    def __init__(self, client):
        self._client = client

    async def get_response(self, prompt, model, args, tools=None):
        native, _ = await self.to_native_prompt(prompt)
        found = await self.get_native_response(native, model, args, tools)
        await self.raise_from_native_response(found)
        return await self.from_native_response(found)


class Game:
    """An environment whose rollout ends with a 7, or after three turns, or fails at a "fail"."""

    def __init__(self, rewrites=False):
        self.rewrites = rewrites
        self.rubric = SimpleNamespace(score_rollout=self.score)

    def get_dataset(self):
        return [{"prompt": f"Guess {i}", "example_id": i} for i in range(5)]

    async def rollout(self, row, client, model, args):
        said, state = [user(row["prompt"])], {"turns": [], "error": None}
        while len(state["turns"]) < 3:
            message = (await client.get_response(said, model, args, [TOOL])).message
            state["turns"].append(message)
            if message.content == "fail":
                return {**state, "error": "ModelError()"}
            if "7" in message.content:
                return state
            before = said[1:] if self.rewrites else said
            said = [*before, {"role": "assistant", "content": message.content}, user("no")]
        return {**state, "is_truncated": True}

    async def score(self, state):
        state["reward"] = float("7" in state["turns"][-1].content)
        state["metrics"] = {"turns": float(len(state["turns"]))}


@pytest.fixture
def library(monkeypatch):
    made = {
        name: ModuleType(name) for name in ("verifiers", "verifiers.clients", "verifiers.types")
    }
    made["verifiers"].load_environment = lambda name, **how: Game(**how)
    made["verifiers.clients"].Client = Client
    for name in ("Response", "ResponseMessage", "ToolCall"):
        setattr(made["verifiers.types"], name, SimpleNamespace)
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    _loaded.cache_clear()
    yield
    _loaded.cache_clear()


@catches("what the policy has said itself observed again", "a rollout's end without its rubric")
def test_a_rollout_asks_turn_by_turn_and_its_rubric_gives_the_reward(library):
    async def played():
        game = VerifiersRollout("game")
        first = await game.reset(seed=7, options={})
        assert first == ([user("Guess 2")], {"example": 2})
        assert game.tools[0]["function"]["name"] == "add"
        call = json.dumps({"name": "add", "arguments": {"a": 1}})
        second = await game.step(f"<tool_call>{call}</tool_call>")
        last = await game.step("It is 7.")
        turns = game._rollout.result()["turns"]
        await game.close()
        return second, last, turns

    second, last, turns = asyncio.run(played())
    assert second == ([user("no")], 0.0, False, False, {})
    assert last == ("", 1.0, True, False, {"metrics": {"turns": 2.0}})
    assert [(x.name, x.arguments) for x in turns[0].tool_calls] == [("add", '{"a": 1}')]
    assert turns[1].tool_calls is None


def test_a_rollout_that_is_cut_fails_or_rewrites_is_told(library):
    async def ended(turns, **how):
        game = VerifiersRollout("game", **how)
        await game.reset(seed=0, options={})
        try:
            return [await game.step(turn) for turn in turns][-1]
        finally:
            await game.close()

    cut = asyncio.run(ended(["1", "2", "3"]))
    assert cut[1:4] == (0.0, False, True)
    with pytest.raises(ValueError, match=r"the rollout failed: ModelError\(\)"):
        asyncio.run(ended(["fail"]))
    with pytest.raises(ValueError, match="expected one that only adds messages"):
        asyncio.run(ended(["1"], rewrites=True))
    with pytest.raises(ValueError, match="tool_format = 'xml', expected one of hermes"):
        VerifiersRollout("game", tool_format="xml")
