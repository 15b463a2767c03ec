"""Conversations in a report: turns with their rewards, calls, observations, tokens in colour."""

from __future__ import annotations

import pytest

from lmpg.runs.report.sample_rows import samples_block
from lmpg.runs.report.shown_turns import conversation, notes
from tests.runs.test_report import Page
from tests.runs.test_token_colours import tokens_of
from tests.support.planted import catches

CALL = {"id": "1", "function": {"name": "add", "arguments": {"a": 1, "b": "<x>"}}}
TURNS = [
    {"text": "8", "reward": -1.0},
    {"observation": "higher\n", "text": "12", "reward": -1.0, "calls": [CALL]},
]
ROW = {"step": 1, "prompt": "1-15?", "completion": "8higher\n12", "score": -2.0, "finished": True,
       "rewards": {"environment": -2.0}, "turns": TURNS, "end": "terminated"}  # fmt: skip
TOKENS = {
    "prompt": "<s>1-15?", "length": 7,
    "texts": ["8", "</s>", "hi", "gher\n", "1", "2", "</s>"], "turn": [0, 0, -1, -1, 1, 1, 1],
    "advantage": [0.5, 0.5, None, None, -1.0, 0.25, 0.5],
}  # fmt: skip


@catches("a reward beside another turn", "an observation after the turn that answers it")
@pytest.mark.parametrize("row", [ROW, {**ROW, "tokens": TOKENS}], ids=["texts", "tokens"])
def test_turns_stand_in_their_order_each_with_its_reward_and_calls(row):
    page = Page(samples_block({1: [row]}))
    said = page.text.replace("</s>", "").replace("<s>", "").replace("↵", "")
    shown = "".join(said[said.index("1-15?") :].split())
    assert shown == '1-15?8−1higher12−1add(a=1,b="<x>")−2.002turns'


@catches("the environment's tokens in colour")
def test_only_the_policys_tokens_have_colours_and_each_turn_ends_in_a_frame():
    page = Page(conversation({**ROW, "tokens": TOKENS}, {"advantage": 1.0}))
    found = tokens_of(page)
    styles = [attrs["style"].removeprefix("--advantage:") for attrs in found]
    assert styles == ["0.50", "0.50", "-1.00", "0.25", "0.50"]
    assert [attrs.get("class") for attrs in found] == [None, "end", None, None, "end"]


def test_what_ended_a_conversation_is_told_where_it_did_not_end_by_itself():
    assert notes(ROW) == ["2 turns"]
    assert notes({**ROW, "turns": TURNS[:1], "end": "max_turns"}) == [
        "1 turn",
        "cut off: max_turns",
    ]
    lost = {**ROW, "end": "error", "error": "step: ValueError: <no>", "score": None}
    text = Page(samples_block({1: [lost]})).text
    assert text.endswith("step: ValueError: <no> no score 2 turns lost")


def test_the_middle_of_a_long_conversation_is_folded_away():
    turns = [{"observation": f"o{k}", "text": f"t{k}", "reward": 0.0} for k in range(20)]
    page = Page(conversation({**ROW, "turns": turns}, {}))
    shown, folded = page.text.split("8 turns in between")
    assert ("t5" in shown, "t6" in shown) == (True, False)
    assert [f"t{k}" in folded for k in (6, 13, 14, 19)] == [True] * 4
    assert not [tag for tag, _ in Page(conversation(ROW, {})).tags if tag == "details"]


def test_tokens_that_were_left_out_are_told_between_their_halves():
    tokens = {**TOKENS, "length": 107}
    text = Page(conversation({**ROW, "tokens": tokens}, {"advantage": 1.0})).text
    assert "100 tokens left out" in text


def test_a_truncated_rows_last_observation_stands_behind_its_last_turn():
    tokens = {**TOKENS, "texts": [*TOKENS["texts"], "end?"], "turn": [*TOKENS["turn"], -1]}
    text = Page(conversation({**ROW, "tokens": tokens}, {"advantage": 1.0})).text
    assert text.endswith("end?")


def test_observations_that_are_messages_are_shown_as_such():
    turn = {"observation": [{"role": "tool", "content": "<3>"}], "text": "3", "reward": None}
    assert "tool: <3>" in Page(conversation({**ROW, "turns": [turn]}, {})).text
