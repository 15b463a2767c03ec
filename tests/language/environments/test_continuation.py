"""What is appended between turns is what the template writes there; sampled ids stay."""

from __future__ import annotations

import pytest

from lmpg.language.data.settings import DataSettings
from lmpg.language.data.tokenizing import chat_ids, encode, prompt_ids
from lmpg.language.environments.continuation import Continuation
from lmpg.language.environments.interface import Outcome
from lmpg.settings.section import UserError
from tests.support.chats import assistant, user
from tests.support.planted import catches
from tests.support.templates import FAMILIES, QWEN3, family_tokenizer

TURNS = ["Is it 4?", "  Then 7, or\n8. ", "<|not a token|> 9"]
REPLIES = ["higher", "lower\n", " yes "]


def played(tokenizer, turns, replies, *, ends=True, tools=None, **how):
    """Ids of a conversation turn by turn, its messages, and the (start, end) of each turn."""
    eos = tokenizer.eos_token_id
    continuation = Continuation(tokenizer, DataSettings(), [eos], **how)
    began = Outcome([user("Guess.")], tools=tools)
    conversation = continuation.messages(began)
    ids, spans = continuation.first(began), []
    for turn, reply in zip(turns, replies):
        answer = encode(tokenizer, turn) + [eos] * ends
        spans.append((len(ids), len(ids) + len(answer)))
        outcome = Outcome(reply, tools=tools)
        conversation = [*conversation, assistant(turn)]
        ids = ids + answer + continuation.after(conversation, answer, outcome)
        conversation += continuation.messages(outcome, conversation)
    return ids, conversation, spans


@pytest.mark.parametrize("family", FAMILIES)
@catches(
    "the end of a turn that the policy has sampled written once more",
    "the line break behind the end of a turn forgotten",
)
def test_a_conversation_turn_by_turn_is_the_template_s_own(family):
    tokenizer = family_tokenizer(family)
    turns = [turn.strip() for turn in TURNS]  # some templates strip what they write
    for ends in (True, False):  # a turn that was cut gets its end from the template
        ids, messages, spans = played(tokenizer, turns, REPLIES, ends=ends)
        assert ids == chat_ids(tokenizer, messages, open_turn=True)
        texts = [tokenizer.decode(ids[start:end]) for start, end in spans]
        assert texts == [turn + tokenizer.eos_token * ends for turn in turns]


@pytest.mark.parametrize("family", FAMILIES)
@catches("what follows cut off by the length of a turn that the template strips")
def test_what_follows_a_turn_is_the_same_where_the_template_would_strip_the_turn(family):
    tokenizer = family_tokenizer(family)
    ids, _, spans = played(tokenizer, TURNS, REPLIES)
    stripped, _, cut = played(tokenizer, [turn.strip() for turn in TURNS], REPLIES)
    starts = [*(start for start, _ in spans[1:]), None]
    cut_starts = [*(start for start, _ in cut[1:]), None]
    for (_, end), start, (_, cut_end), cut_start in zip(spans, starts, cut, cut_starts):
        assert ids[end:start] == stripped[cut_end:cut_start]
        assert len(ids[end:start]) > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_observations_are_text_where_data_says_so(family):
    tokenizer = family_tokenizer(family)
    tokenizer.split_special_tokens = True
    spelt = [f"higher{tokenizer.eos_token}", "lower", "yes"]
    ids, messages, _ = played(tokenizer, [turn.strip() for turn in TURNS], spelt)
    assert ids == chat_ids(tokenizer, messages, open_turn=True)


def test_the_first_ids_are_those_of_data_without_an_environment():
    tokenizer = family_tokenizer("chatml")
    for prompt in ("Guess.", [user("Guess.")]):
        found = Continuation(tokenizer, DataSettings(), [0]).first(Outcome(prompt))
        assert found == prompt_ids(tokenizer, prompt)
    system = Continuation(
        tokenizer, DataSettings(path="rows.jsonl", system_prompt="Be brief."), [0]
    )
    assert system.messages(Outcome("Guess."))[0]["content"] == "Be brief."


@catches("a template that drops earlier thinking goes unnoticed")
def test_a_template_that_drops_earlier_thinking_is_refused_or_told(caplog):
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = QWEN3
    with pytest.raises(UserError, match=r"thinking of an earlier turn.*environment.rewritten keep"):
        played(tokenizer, TURNS, REPLIES)
    caplog.clear()
    thought = "<think>\nmany\n</think>\n\n4"
    ids, _, spans = played(tokenizer, [thought], ["higher"], rewritten="keep")
    assert tokenizer.decode(ids[slice(*spans[0])]) == thought + tokenizer.eos_token
    assert tokenizer.decode(ids[spans[0][1] :]) == (
        "\n<|im_start|>user\nhigher<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "goes on reading what it has sampled" in caplog.text


def test_a_template_that_opens_the_thinking_itself_rewrites_what_stands_before():
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = QWEN3
    data = DataSettings(path="rows.jsonl", chat_template_kwargs={"enable_thinking": False})
    continuation = Continuation(tokenizer, data, [tokenizer.eos_token_id])
    with pytest.raises(UserError, match="what stands before an earlier turn"):
        continuation.first(Outcome([user("Guess.")]))


def test_plain_text_goes_on_as_text_and_no_token_is_read_twice():
    tokenizer = family_tokenizer("chatml")
    continuation = Continuation(tokenizer, DataSettings(), [tokenizer.eos_token_id])
    began, reply = Outcome("N = 4\n> "), Outcome("\nlower\n> ")
    assert continuation.messages(began) is None
    for answer in (encode(tokenizer, "go 3"), [*encode(tokenizer, "go 3"), tokenizer.eos_token_id]):
        more = continuation.after("N = 4\n> go 3", answer, reply)
        assert tokenizer.decode(more) == "\nlower\n> "
    assert continuation.after("go", [5], Outcome("")) == []
    with pytest.raises(UserError, match="expected one kind"):
        continuation.after("go", [5], Outcome([user("lower")]))
