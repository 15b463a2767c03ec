"""Chat: what is a message, what a template gets, and that a chat is learned in its own ids."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lmpg.language.data.chat import chat_options, render_chat, text_or_messages
from lmpg.language.data.examples import RowFilter
from lmpg.language.data.policy_pairs import (
    labelled_completions_from_rows,
    preference_pairs_from_rows,
)
from lmpg.language.data.prompts import prompts_from_rows
from lmpg.language.data.reward_pairs import reward_pairs_from_rows
from lmpg.language.data.texts import texts_from_rows
from lmpg.language.data.tokenizing import (
    chat_ids,
    encode,
    ids_and_cuts,
    prompt_ids,
    scored_ids,
)
from lmpg.settings import said_once
from lmpg.settings.section import UserError
from tests.support.chats import CHAT, LLAMA2, WORDS, assistant, chat_tokenizer, part, spans, user
from tests.support.planted import catches


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level one, in which two line breaks are one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet, "ĊĊ"])}
    inner = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ")]))
    inner.add_special_tokens(["<s>", "</s>"])
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", chat_template=WORDS
    )


@catches("each turn of a chat tokenised on its own")
@pytest.mark.parametrize("space_first", [False, True])
@pytest.mark.parametrize("template", [WORDS, LLAMA2])
def test_a_chat_is_learned_in_the_ids_of_the_text_that_the_template_writes(template, space_first):
    tokenizer = chat_tokenizer(template, space_first=space_first)
    whole = encode(tokenizer, render_chat(tokenizer, CHAT, open_turn=False))
    (text,) = texts_from_rows([{"messages": CHAT}], tokenizer, 512)
    assert text.ids == whole
    assert spans(tokenizer, text) == ["Yo, friend</s>", "So long</s>"] or template == LLAMA2
    (last,) = texts_from_rows([{"prompt": CHAT[:3], "completion": CHAT[3:]}], tokenizer, 512)
    assert last.ids == whole
    sampled_from = prompt_ids(tokenizer, CHAT[:3])
    assert last.ids[: last.prompt_length] == sampled_from


@catches("a pair of chats whose answers are tokenised behind their prompt")
@pytest.mark.parametrize("tokenizer", [chat_tokenizer(WORDS), merging_tokenizer()])
@pytest.mark.parametrize("answers", [("Yes", "No"), ("\nYes", "No"), ("No", "\n\nYes")])
def test_every_method_reads_a_chat_in_the_same_ids(tokenizer, answers):
    row = {"prompt": CHAT[:3], "chosen": answers[0], "rejected": answers[1]}
    wholes = [chat_ids(tokenizer, [*CHAT[:3], assistant(x)], open_turn=False) for x in answers]
    (pair,) = preference_pairs_from_rows([row], tokenizer, RowFilter(512, "error", []))
    assert [pair.chosen.ids, pair.rejected.ids] == wholes
    start = pair.chosen.prompt_length
    assert pair.chosen.ids[:start] == pair.rejected.ids[: pair.rejected.prompt_length]
    for text, answer in zip((pair.chosen, pair.rejected), answers):
        assert all(text.loss_mask[start:-1])
        assert tokenizer.decode(text.ids[start:]).strip().startswith(answer.strip())
    labelled = labelled_completions_from_rows([row] * 2, tokenizer, RowFilter(512, "error", []))
    assert [x.text.ids for x in labelled[:2]] == wholes
    (scored,) = reward_pairs_from_rows([row], tokenizer, 512)
    assert [scored.chosen_ids, scored.rejected_ids] == wholes
    assert scored_ids(tokenizer, row["prompt"], answers[0]) == wholes[0]


def test_a_token_that_holds_the_prompts_end_and_the_answers_begin_is_learned():
    tokenizer = merging_tokenizer()
    (text,) = texts_from_rows([{"prompt": CHAT[:1], "completion": "\n\nYo"}], tokenizer, 512)
    assert tokenizer.decode(text.ids[text.prompt_length :]) == "\n\n\nYo</s>\n"


@pytest.mark.parametrize("tokenizer", [chat_tokenizer(LLAMA2), merging_tokenizer()])
def test_a_tokenizer_without_offsets_cuts_a_chat_at_the_same_tokens(tokenizer):
    class Slow:
        def __len__(self):
            return len(tokenizer)

        is_fast = False

        def __call__(self, text, **options):
            return tokenizer(text, **options)

    whole = render_chat(tokenizer, CHAT, open_turn=False)
    cuts = [render_chat(tokenizer, CHAT[:n], open_turn=n % 2 == 1) for n in range(1, 5)]
    assert ids_and_cuts(Slow(), whole, cuts) == ids_and_cuts(tokenizer, whole, cuts)


def test_of_a_turn_that_the_prompt_began_the_completion_alone_is_learned():
    tokenizer = chat_tokenizer(WORDS)
    row = {"prompt": [user("Hi"), assistant("Well, ")], "completion": "yo"}
    (text,) = texts_from_rows([row], tokenizer, 512)
    assert spans(tokenizer, text) == ["yo</s>"]
    assert text.ids == chat_ids(tokenizer, [user("Hi"), assistant("Well, yo")], open_turn=False)
    assert text.ids[: text.prompt_length] == prompt_ids(tokenizer, row["prompt"])


def test_two_turns_of_the_assistant_in_a_row_are_learned_each():
    tokenizer = chat_tokenizer(WORDS)
    messages = [user("Hi"), assistant("Yo"), assistant("So")]
    (text,) = texts_from_rows([{"messages": messages}], tokenizer, 512)
    assert spans(tokenizer, text) == ["Yo</s>", "So</s>"]


def test_a_turn_that_goes_on_otherwise_than_it_was_opened_is_refused():
    tokenizer = chat_tokenizer(WORDS.replace("[assistant]\n", "[assistant]\n<think>"))
    with pytest.raises(UserError, match=r"row 1: .* opens the assistant's turn with '<think>'"):
        texts_from_rows([{"messages": CHAT[:2]}], tokenizer, 512)


@catches("content in parts learned as Python's text of a list")
def test_content_in_parts_is_one_text_in_every_method():
    tokenizer = chat_tokenizer(WORDS)
    parts = [user([part("Hi "), part("you")]), assistant([part("Yo")])]
    plain = [user("Hi you"), assistant("Yo")]
    ids = chat_ids(tokenizer, plain, open_turn=False)
    assert texts_from_rows([{"messages": parts}], tokenizer, 512)[0].ids == ids
    row = {"prompt": parts[:1], "chosen": parts[1:], "rejected": [assistant([part("No")])]}
    no_limit = RowFilter(512, "error", [])
    assert preference_pairs_from_rows([row], tokenizer, no_limit)[0].chosen.ids == ids
    whole = {"chosen": parts, "rejected": [parts[0], assistant([part("No")])]}
    assert preference_pairs_from_rows([whole], tokenizer, no_limit)[0].chosen.ids == ids
    judged = [{"prompt": parts[:1], "completion": parts[1:], "label": x} for x in (True, False)]
    assert labelled_completions_from_rows(judged, tokenizer, no_limit)[0].text.ids == ids
    assert reward_pairs_from_rows([row], tokenizer, 512)[0].chosen_ids == ids
    labelled = [{"text": parts, "label": 1}, {"text": plain[:1], "label": 0}]
    assert reward_pairs_from_rows(labelled, tokenizer, 512)[0].chosen_ids == ids
    (prompt,) = prompts_from_rows([{"prompt": parts[:1]}], tokenizer, 512)
    assert prompt.ids == prompt_ids(tokenizer, plain[:1])
    assert prompt.prompt == plain[:1]


@pytest.mark.parametrize("content", ["Hi", [part("Hi")]])
def test_a_template_that_reads_only_parts_gets_parts(content):
    tokenizer = chat_tokenizer(
        "{% for m in messages %}{% for x in m['content'] %}{{ x['text'] }}{% endfor %}{% endfor %}"
    )
    (prompt,) = prompts_from_rows([{"prompt": [user(content)]}], tokenizer, 512)
    assert tokenizer.decode(prompt.ids) == "Hi"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([{"type": "image"}, part("Hi")], "a part of type 'image'"),
        ([{"type": "input_text", "text": "Hi"}], "a part of type 'input_text'"),
        ([{"type": "text"}], "a part of type 'text'"),
        (["Hi"], "str 'Hi'"),
        (part("Hi"), "content dict"),
        (5, "content int '5'"),
        (True, "content bool 'True'"),
        (None, "no content"),
    ],
)
def test_content_that_is_no_text_is_refused_by_name_in_every_method(content, named):
    tokenizer, bad, no_limit = chat_tokenizer(WORDS), user(content), RowFilter(99, "error", [])
    row = {"prompt": [bad], "chosen": "a", "rejected": "b", "completion": "a", "label": True}
    readers = [
        lambda: prompts_from_rows([row], tokenizer, 99),
        lambda: texts_from_rows([{"messages": [bad, assistant("a")]}], tokenizer, 99),
        lambda: texts_from_rows([{"prompt": [bad], "completion": "a"}], tokenizer, 99),
        lambda: preference_pairs_from_rows([row], tokenizer, no_limit),
        lambda: labelled_completions_from_rows([row], tokenizer, no_limit),
        lambda: reward_pairs_from_rows([row], tokenizer, 99),
        lambda: reward_pairs_from_rows([{"text": [bad], "label": 1}], tokenizer, 99),
    ]
    for read in readers:
        with pytest.raises(UserError, match=r"row 1, column '\w+', message 1") as info:
            read()
        assert named in str(info.value)


@catches("an answer begun with null goes on in a traceback")
def test_an_answer_begun_without_text_is_refused_by_name():
    row = {"prompt": [user("Hi"), assistant(None)], "chosen": "yes", "rejected": "no"}
    for read in (preference_pairs_from_rows, labelled_completions_from_rows):
        with pytest.raises(UserError, match=r"row 1.*message 2 \(assistant\) has no content"):
            read([row], chat_tokenizer(WORDS), RowFilter(99, "error", []))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([{"role": "user"}], r"here, message 1 \(user\) has no content, expected text"),
        ([{"from": "human", "value": "Hi"}], r"message 1 has 'from', 'value' and no role"),
        ([{"role": 3, "content": "Hi"}], r"message 1 has 'role', 'content' and no role that is"),
        ([{}], "message 1 has no keys and no role"),
        (["Hi"], r"here holds list .* expected text, or chat messages"),
        (5, r"here holds int '5', expected text, or chat messages"),
        ('[{"from": "human", "value": "Hi"}]', r"message 1 has 'from', 'value' and no role"),
        ("[{'role': 'user', 'content': 'Hi'}]", r"here holds the text .* doesn't parse as JSON"),
    ],
)
def test_what_is_no_chat_is_refused_with_what_it_is(value, said):
    with pytest.raises(UserError, match=said):
        text_or_messages(value, "here")


def test_a_chat_that_is_written_as_json_text_is_a_chat():
    assert text_or_messages(json.dumps(CHAT), "here") == CHAT
    assert text_or_messages("[{not a chat", "here") == "[{not a chat"
    flights = '[{"from": "Oslo", "to": "Rome"}]'
    assert text_or_messages(flights, "here") == flights


def test_half_a_character_is_read_as_its_replacement_wherever_a_chat_comes_from(caplog):
    said_once._said.clear()
    for chat in ([user("a\ud83d")], '[{"role": "user", "content": "a\\ud83d"}]'):
        assert text_or_messages(chat, "here") == [user("a\ufffd")]
    assert chat_options({"tools": [{"name": "\ud83d"}]}, "here") == {"tools": [{"name": "\ufffd"}]}
    assert caplog.text.count("half a character, read as \ufffd") == 1
    tokenizer = chat_tokenizer("\ud83d" + WORDS)
    assert render_chat(tokenizer, CHAT[:1], open_turn=True).startswith("\ufffd[user]")


def test_a_turn_of_weight_zero_is_read_and_not_learned():
    tokenizer = chat_tokenizer(WORDS)
    chat = [CHAT[0], {**CHAT[1], "weight": 0}, CHAT[2], {**CHAT[3], "weight": 1}]
    (text,), (whole,) = (texts_from_rows([{"messages": x}], tokenizer, 512) for x in (chat, CHAT))
    assert text.ids == whole.ids
    assert spans(tokenizer, text) == spans(tokenizer, whole)[1:]


def test_a_chat_without_turns_to_learn_is_told_its_roles():
    chat = [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Yo"}]
    with pytest.raises(UserError, match=r"row 1: .*the roles are 'human', 'gpt', expected 'assist"):
        texts_from_rows([{"messages": chat}], chat_tokenizer(WORDS), 512)
