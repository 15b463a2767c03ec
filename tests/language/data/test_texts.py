from __future__ import annotations

import json

import pytest

from lmpg.language.data.settings import DataSettings
from lmpg.language.data.texts import load_texts, texts_from_rows
from lmpg.language.data.tokenizing import prompt_ids
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny import tiny_tokenizer
from tests.support.tiny_tokenizers import character_tokenizer


def learned_text(tokenizer, text) -> str:
    return tokenizer.decode([i for i, wanted in zip(text.ids, text.loss_mask) if wanted])


@catches("prompt learned in supervised training")
@pytest.mark.parametrize("space_first", [False, True])
def test_of_prompt_and_completion_only_the_completion_and_its_eos_are_learned(space_first):
    tokenizer = character_tokenizer(space_first=space_first)
    rows = [{"prompt": "1+1=", "completion": " 2"}]
    text = texts_from_rows(rows, tokenizer, 50)[0]
    prompt = prompt_ids(tokenizer, "1+1=")
    assert text.ids[: len(prompt)] == prompt
    assert text.loss_mask == [False] * len(prompt) + [True] * 3
    assert tokenizer.decode(text.ids) == "<s>1+1= 2</s>" or space_first
    assert text.ids[-1] == tokenizer.eos_token_id


def test_a_text_is_learned_whole_and_ends_with_eos():
    tokenizer = character_tokenizer()
    text = texts_from_rows([{"text": "abc"}], tokenizer, 50)[0]
    assert tokenizer.decode(text.ids) == "<s>abc</s>"
    assert text.loss_mask == [False, True, True, True, True]


def test_without_bos_the_first_token_cannot_be_learned():
    text = texts_from_rows([{"text": "abc"}], character_tokenizer(bos=False), 50)[0]
    assert text.loss_mask == [False, True, True, True]


def test_of_messages_the_assistants_turns_are_learned():
    tokenizer = character_tokenizer(chat=True)
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "bye"},
        {"role": "assistant", "content": "so long"},
    ]
    text = texts_from_rows([{"messages": messages}], tokenizer, 99)[0]
    assert learned_text(tokenizer, text) == "yo</s>so long</s>"
    expected = "<|user|>hi<|assistant|>yo</s><|user|>bye<|assistant|>so long</s>"
    assert tokenizer.decode(text.ids) == expected
    split = {"prompt": messages[:3], "completion": messages[3:]}
    text = texts_from_rows([split], tokenizer, 99)[0]
    assert learned_text(tokenizer, text) == "so long</s>"
    assert tokenizer.decode(text.ids) == expected


def test_messages_without_an_answer_are_refused():
    rows = [{"messages": [{"role": "user", "content": "hi"}]}]
    with pytest.raises(UserError, match=r"row 1: no message is the assistant's"):
        texts_from_rows(rows, character_tokenizer(chat=True), 99)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    tokenizer = character_tokenizer(chat=True)
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    turn = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    with pytest.raises(UserError, match=r"writes earlier messages differently"):
        texts_from_rows([{"messages": turn * 2}], tokenizer, 99)


def test_a_text_cut_on_the_left_keeps_bos_and_what_is_learned(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"prompt": "p" * 30, "completion": f"answer {i}"} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(path=str(path), overlong="truncate-left")
    tokenizer = character_tokenizer()
    texts = load_texts(settings, tokenizer, 20)
    assert texts.num_cut == 5
    assert texts.line() == "4 texts to train on, 1 held out; 5 cut on the left"
    for text in texts.train:
        assert len(text.ids) == len(text.loss_mask) == 20
        assert text.ids[0] == tokenizer.bos_token_id
        assert learned_text(tokenizer, text).startswith("answer ")


def test_rows_without_a_completion_are_skipped_and_unknown_columns_refused(tmp_path):
    tokenizer = character_tokenizer()
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}]
    assert len(texts_from_rows(rows, tokenizer, 50)) == 1
    with pytest.raises(UserError, match=r"columns story; expected 'text', 'messages', or 'prompt'"):
        texts_from_rows([{"story": "a"}], tokenizer, 50)


def test_a_text_of_one_token_has_nothing_to_learn_and_is_skipped():
    with pytest.raises(UserError, match="no usable row: of 1, 1 empty skipped"):
        texts_from_rows([{"text": "<eos>"}], tiny_tokenizer(), 64)
    texts = texts_from_rows([{"text": "<eos>"}, {"text": "a"}], tiny_tokenizer(), 64)
    assert [text.loss_mask for text in texts] == [[False, True]]
