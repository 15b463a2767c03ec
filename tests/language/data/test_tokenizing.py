from __future__ import annotations

import pytest

from lmpg.language.data.chat import render_chat
from lmpg.language.data.tokenizing import (
    bos_ids,
    completion_text,
    completion_texts,
    continuation_ids,
    cut_left,
    encode,
    prompt_ids,
    scored_ids,
)
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny_tokenizers import character_tokenizer

BOS, EOS = 1, 2


def test_a_prompt_starts_with_bos_where_the_tokenizer_adds_one_and_only_there():
    assert prompt_ids(character_tokenizer(bos=True), "ab")[0] == BOS
    assert BOS not in prompt_ids(character_tokenizer(bos=False), "ab")


@catches("prompt keeps a trailing EOS")
def test_a_prompt_never_ends_with_the_eos_that_a_tokenizer_appends():
    tokenizer = character_tokenizer(bos=True, appends_eos=True)
    assert tokenizer("ab")["input_ids"][-1] == EOS
    assert prompt_ids(tokenizer, "ab") == [BOS, *encode(tokenizer, "ab")]


def test_a_bos_spelt_out_in_the_prompt_is_not_doubled():
    assert prompt_ids(character_tokenizer(), "<s>ab").count(BOS) == 1


@catches("chat gets a second BOS")
def test_chat_prompts_open_the_assistants_turn_and_get_no_second_bos():
    tokenizer = character_tokenizer(chat=True)
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "hi"}])
    assert tokenizer.decode(ids) == "<|user|>hi<|assistant|>"


def test_a_chat_prompt_that_ends_with_the_assistant_goes_on_with_that_turn():
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well"}]
    text = render_chat(character_tokenizer(chat=True), messages, open_turn=True)
    assert text == "<|user|>hi<|assistant|>Well"


def test_chat_without_a_template_is_refused_with_the_fix():
    with pytest.raises(UserError, match=r"no chat template.*as plain text"):
        prompt_ids(character_tokenizer(), [{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("space_first", [False, True])
def test_a_completions_ids_join_the_prompts_to_the_ids_of_the_whole_text(space_first):
    tokenizer = character_tokenizer(space_first=space_first)
    before, text = "Once upon", " a time"
    joined = prompt_ids(tokenizer, before) + continuation_ids(tokenizer, before, text)
    assert joined == prompt_ids(tokenizer, before + text)


@catches("completion decoded without its prompt")
@pytest.mark.parametrize("space_first", [False, True])
def test_prompt_and_completion_text_join_to_the_whole_text(space_first):
    tokenizer = character_tokenizer(space_first=space_first)
    prompt = prompt_ids(tokenizer, "Once upon")
    response = [*continuation_ids(tokenizer, "Once upon", " a time"), EOS]
    assert completion_text(tokenizer, prompt, response) == " a time"


def test_a_scored_text_ends_with_exactly_one_eos():
    for appends in (False, True):
        tokenizer = character_tokenizer(appends_eos=appends)
        for completion in ("b", "b</s>"):
            ids = scored_ids(tokenizer, "a", completion)
            assert ids[0] == BOS
            if not (appends and completion.endswith("</s>")):
                assert ids[-1] == EOS
                assert ids.count(EOS) == 1


def test_a_scored_chat_ends_as_its_template_says():
    tokenizer = character_tokenizer(chat=True)
    prompt = [{"role": "user", "content": "hi"}]
    text = tokenizer.decode(scored_ids(tokenizer, prompt, "yo"))
    assert text == "<|user|>hi<|assistant|>yo</s>"


def test_cutting_on_the_left_keeps_bos_and_the_end():
    assert cut_left([1, 10, 11, 12], 3, [1]) == [1, 11, 12]
    assert cut_left([10, 11, 12], 2, [1]) == [11, 12]
    assert cut_left([1, 10], 3, [1]) == [1, 10]


def test_start_ids_are_found_whatever_the_tokenizer_puts_behind():
    assert bos_ids(character_tokenizer(bos=True, appends_eos=True)) == [BOS]
    assert bos_ids(character_tokenizer(bos=False, appends_eos=True)) == []


@catches("the text of a response continues another prompt's")
@pytest.mark.parametrize("space_first", [False, True])
def test_texts_of_many_responses_are_those_of_one_at_a_time(space_first):
    tokenizer = character_tokenizer(space_first=space_first)
    prompts = [prompt_ids(tokenizer, text) for text in ("Once", "Once upon", "Once")]
    responses = [[*continuation_ids(tokenizer, "Once upon", x), EOS] for x in (" a", "b", " c")]
    alone = [completion_text(tokenizer, p, r) for p, r in zip(prompts, responses)]
    assert completion_texts(tokenizer, prompts, responses) == alone
