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
    many_prompt_ids,
    prompt_ids,
    scored_ids,
)
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny import tiny_tokenizer
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
    with pytest.raises(UserError, match=r"no chat template.*give plain text"):
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


@catches("a second BOS or EOS around a text that spells its own")
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("appends", [True, False])
def test_a_scored_text_has_one_bos_and_one_eos_whatever_it_spells(bos, appends):
    tokenizer = character_tokenizer(bos=bos, appends_eos=appends)
    plain = scored_ids(tokenizer, "a", "b")
    assert plain == [BOS] * bos + encode(tokenizer, "ab") + [EOS]
    assert scored_ids(tokenizer, "a", "b</s>") == plain
    if bos:
        assert scored_ids(tokenizer, "<s>a", "b") == plain
        assert scored_ids(tokenizer, "<s>a", "b</s>") == plain
    for text in ("aab", "abb", ""):  # what repeats, but is no frame, stays
        assert scored_ids(tokenizer, text, "") == [BOS] * bos + encode(tokenizer, text) + [EOS]


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


@catches("special tokens cut out of what rewards see")
@pytest.mark.parametrize("space_first", [False, True])
def test_rewards_see_every_token_but_the_eos_that_ends_the_response(space_first):
    tokenizer = character_tokenizer(space_first=space_first)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    think, done, user = tokenizer.convert_tokens_to_ids(["<think>", "</think>", "<|user|>"])
    prompt = [*prompt_ids(tokenizer, "Once upon"), user]  # chat prompts end with special tokens
    x = continuation_ids(tokenizer, "Once upon", "x")
    response = [think, *x, done, user, *x]
    text = "<think>x</think><|user|>x"
    assert completion_text(tokenizer, prompt, response) == text
    assert completion_text(tokenizer, prompt, [*response, EOS]) == text
    assert completion_text(tokenizer, prompt, [*x, EOS, *x]) == "x</s>x"
    assert completion_text(tokenizer, prompt, [*x, done], [EOS, done]) == "x"
    assert completion_text(tokenizer, prompt, [*x, EOS], [done]) == "x</s>"
    assert completion_text(tokenizer, prompt, [EOS]) == ""
    assert completion_text(tokenizer, prompt, []) == ""
    assert completion_text(tokenizer, [], response) == text


def test_special_tokens_that_are_added_later_are_known():
    tokenizer = character_tokenizer()
    assert completion_text(tokenizer, [BOS], [EOS]) == ""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    new = tokenizer.convert_tokens_to_ids("<new>")
    assert completion_text(tokenizer, [BOS, new], [new]) == "<new>"


def test_a_tokenizer_that_tidies_up_what_it_decodes_does_not_tidy_completions():
    tokenizer, written = tiny_tokenizer(), "it 's , ok ?"
    tokenizer.clean_up_tokenization_spaces = True
    prompt, response = encode(tokenizer, "a"), encode(tokenizer, written)
    assert tokenizer.decode(response) != written
    assert completion_text(tokenizer, prompt, response) == written


@catches("many texts cut as the tokenizer's file says")
def test_many_prompts_are_read_as_each_alone_whatever_the_tokenizer_was_saved_with():
    texts = ["a b c d e", "</s> x", "<s>a b", "", "b"]
    for as_text in (False, True):
        tokenizer = character_tokenizer(bos=True, appends_eos=True)
        tokenizer.split_special_tokens = as_text
        expected = [prompt_ids(tokenizer, text) for text in texts]
        tokenizer.backend_tokenizer.enable_truncation(2)
        tokenizer.backend_tokenizer.enable_padding()
        assert many_prompt_ids(tokenizer, texts) == expected


@pytest.mark.parametrize("method", ["__call__", "_encode_plus"])
def test_a_tokenizer_that_reads_otherwise_than_its_backend_reads_many_prompts_itself(method):
    tokenizer = character_tokenizer()
    plain = type(tokenizer)

    def backwards(self, text, **options):
        text = text[::-1] if isinstance(text, str) else [x[::-1] for x in text]
        return getattr(plain, method)(self, text, **options)

    expected = [prompt_ids(tokenizer, "cba"), prompt_ids(tokenizer, "e")]
    tokenizer.__class__ = type("Backwards", (plain,), {method: backwards})
    assert many_prompt_ids(tokenizer, ["abc", "e"]) == expected
