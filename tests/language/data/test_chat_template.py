"""What a chat template gets beside the messages: tools, and variables of its own."""

from __future__ import annotations

import json
import logging
import re

import pytest

from lmpg.language.data.examples import RowFilter
from lmpg.language.data.policy_pairs import (
    labelled_completions_from_rows,
    preference_pairs_from_rows,
)
from lmpg.language.data.prompts import prompts_from_rows
from lmpg.language.data.reward_pairs import reward_pairs_from_rows
from lmpg.language.data.texts import texts_from_rows
from lmpg.language.data.tokenizing import encode, prompt_ids
from lmpg.settings import said_once
from lmpg.settings.section import UserError
from tests.support.chats import CHAT, WORDS, assistant, chat_tokenizer, spans, user
from tests.support.planted import catches

TOOLS = "{% if tools %}TOOLS {{ tools | tojson }}{% endif %}{{ mood }}" + WORDS
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def test_a_call_of_a_tool_needs_no_text_but_a_template_that_writes_it():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": TOOL["function"]}]}
    row = {"prompt": [user("Rain?")], "completion": [call]}
    with pytest.raises(UserError, match=r"chat template doesn't write tool_calls"):
        texts_from_rows([row], chat_tokenizer(WORDS), 512)
    template = WORDS.replace(
        "{{ m['content'] }}", "{{ m.content or m.tool_calls[0].function.name }}"
    )
    with pytest.raises(UserError, match=r"chat template doesn't write tool_calls"):
        texts_from_rows(
            [{**row, "completion": [{**call, "content": ""}]}], chat_tokenizer(WORDS), 512
        )
    tokenizer = chat_tokenizer(template)
    assert spans(tokenizer, texts_from_rows([row], tokenizer, 512)[0]) == ["weather</s>"]


@catches("the column tools never reaches the chat template")
@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_variables_of_a_row_reach_the_template_in_every_method(as_text):
    tokenizer, chat, no_limit = chat_tokenizer(TOOLS), CHAT[:2], RowFilter(512, "error", [])
    wanted = tokenizer.apply_chat_template(chat, tools=[TOOL], mood="glad", tokenize=False)
    ids = encode(tokenizer, wanted)
    extra = {"tools": [TOOL], "chat_template_kwargs": {"mood": "glad"}}
    extra = {name: json.dumps(x) if as_text else x for name, x in extra.items()}
    row = {"prompt": chat[:1], "chosen": chat[1:], "label": True, **extra}
    row["rejected"] = [assistant("no")]
    assert wanted.startswith("TOOLS [")
    assert "]glad[user]" in wanted
    assert texts_from_rows([{"messages": chat, **extra}], tokenizer, 512)[0].ids == ids
    assert texts_from_rows([row], tokenizer, 512)[0].ids == ids
    assert preference_pairs_from_rows([row], tokenizer, no_limit)[0].chosen.ids == ids
    judged = [{**row, "completion": "Yo, friend"}]
    assert labelled_completions_from_rows(judged, tokenizer, no_limit)[0].text.ids == ids
    assert reward_pairs_from_rows([row], tokenizer, 512)[0].chosen_ids == ids
    texts = [{"text": chat, "label": 1, **extra}, {"text": chat[:1], "label": 0}]
    assert reward_pairs_from_rows(texts, tokenizer, 512)[0].chosen_ids == ids
    (prompt,) = prompts_from_rows([row], tokenizer, 512)
    assert ids[: len(prompt.ids)] == prompt.ids


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("tools", "weather", r"row 1, column 'tools' holds the text 'weather'"),
        ("tools", ["weather"], r"row 1, column 'tools' holds the text 'weather'"),
        ("tools", {"name": "weather"}, r"column 'tools' holds dict .* expected a list of tools"),
        ("tools", 5, r"column 'tools' holds int '5', expected a list of tools"),
        ("chat_template_kwargs", [1], r"holds list '\[1\]', expected variables of the chat"),
        ("chat_template_kwargs", {"tokenize": True}, r"expected variables of the chat template"),
    ],
)
def test_tools_and_variables_of_another_kind_are_refused_by_name(column, value, said):
    with pytest.raises(UserError, match=said):
        prompts_from_rows([{"prompt": CHAT[:1], column: value}], chat_tokenizer(TOOLS), 512)


def test_that_a_template_writes_no_tools_is_said(caplog):
    template = WORDS + "{# test #}"
    said_once._said.clear()
    with caplog.at_level(logging.WARNING):
        row = {"prompt": CHAT[:1], "tools": [TOOL]}
        (prompt,) = prompts_from_rows([row], chat_tokenizer(template), 512)
    assert prompt.ids == prompt_ids(chat_tokenizer(WORDS), CHAT[:1])
    assert "the chat template writes no tools" in caplog.text


def test_that_a_template_leaves_out_what_the_assistant_thinks_is_said(caplog):
    template = WORDS.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
    row = {"prompt": CHAT[:1], "completion": "<think>hm</think>\nYo"}
    said_once._said.clear()
    with caplog.at_level(logging.WARNING):
        texts_from_rows([{**row, "completion": " Yo\n"}], chat_tokenizer(WORDS), 512)
        assert not caplog.text
        (text,) = texts_from_rows([row], chat_tokenizer(template), 512)
    assert spans(chat_tokenizer(template), text) == ["Yo</s>"]
    assert "leaves out part of what the assistant says" in caplog.text


SAYS = "{{ m['content'] }}"


@pytest.mark.parametrize(
    ("template", "row", "said"),
    [
        (
            WORDS,
            {"prompt": [user("Hi"), {**assistant("Look"), "tool_calls": [TOOL]}, user("So?")]},
            "the chat template doesn't write tool_calls",
        ),
        (
            WORDS.replace(SAYS, "{% if m.role != 'system' %}" + SAYS + "{% endif %}"),
            {"prompt": [{"role": "system", "content": "Be brief"}, user("Hi")]},
            "leaves out part of what the system says, so",
        ),
        (
            WORDS,
            {"prompt": [user("Hi"), {**assistant("Yo"), "reasoning_content": "hm"}, user("So?")]},
            r"leaves out part of what the assistant says \(such as its thinking\)",
        ),
        (
            WORDS,
            {"prompt": [user("Hi")], "chat_template_kwargs": {"enable_thinking": False}},
            "the enable_thinking of chat_template_kwargs is not used",
        ),
        ("{{ strftime_now('%Y') }}" + WORDS, {"prompt": [user("Hi")]}, "writes today's date"),
        (WORDS, {"prompt": [user("Hi")], "images": ["a.png"]}, "images can't be learned from"),
    ],
)
def test_what_a_template_does_not_write_is_said(caplog, template, row, said):
    said_once._said.clear()
    with caplog.at_level(logging.WARNING):
        prompts_from_rows([row], chat_tokenizer(template), 512)
    assert re.search(said, caplog.text)


@pytest.mark.parametrize("template", [WORDS, WORDS.replace(SAYS, "{{ m['content'] | tojson }}")])
def test_of_a_template_that_writes_all_nothing_is_said(caplog, template):
    said_once._said.clear()
    messages = [user('say "hé"\n'), {**assistant("Yo "), "reasoning_content": None}, user("So?")]
    with caplog.at_level(logging.WARNING):
        prompts_from_rows([{"prompt": messages, "images": []}], chat_tokenizer(template), 512)
    assert not caplog.text


def test_a_template_that_refuses_messages_is_told_with_what_helps():
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    for template, messages, said in (
        (
            strict,
            [{"role": "system", "content": "a"}, user("b")],
            r"roles system, user: no system;",
        ),
        (strict, [{"role": "system", "content": "a"}, user("b")], r"without the system message"),
        ("{% for m in messages %}{% endif %}", [user("b")], r"template is no Jinja \(line 1: "),
        (
            "{{ messages[0].a.b }}",
            [user("b")],
            r"roles user: .*no attribute 'a'; .*--data\.chat-template",
        ),
    ):
        with pytest.raises(UserError, match=said) as refused:
            prompt_ids(chat_tokenizer(template), messages)
        assert "\n" not in str(refused.value)


def test_the_row_whose_messages_a_template_refuses_is_named_in_every_method():
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + WORDS
    tokenizer, limit = chat_tokenizer(strict), RowFilter(512, "error", [])
    bad = [{"role": "system", "content": "a"}, user("b")]
    rows = [
        {"prompt": x, "chosen": [assistant("c")], "rejected": [assistant("d")]}
        for x in ([user("a")], bad)
    ]
    chats = [{"messages": [*row["prompt"], *row["chosen"]]} for row in rows]
    for read, given in (
        (lambda x: prompts_from_rows(x, tokenizer, 512), rows),
        (lambda x: texts_from_rows(x, tokenizer, 512), chats),
        (lambda x: reward_pairs_from_rows(x, tokenizer, 512), rows),
        (lambda x: preference_pairs_from_rows(x, tokenizer, limit), rows),
    ):
        assert len(read(given[:1])) == 1
        with pytest.raises(UserError, match=r"^rows, row 2: the chat template refuses"):
            read(given)
