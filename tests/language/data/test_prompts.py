from __future__ import annotations

import json

import pytest

from lmpg.language.data.prompts import common_columns, lengths_of, load_prompts, prompts_from_rows
from lmpg.language.data.settings import DataSettings
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny_tokenizers import character_tokenizer

BOS = 1


@pytest.fixture
def load(tmp_path):
    def load_rows(rows, limit=20, tokenizer=None, may_lack_prompts=False, **settings):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tokenizer = tokenizer or character_tokenizer(chat=True)
        data = DataSettings(path=str(path), **settings)
        return load_prompts(data, tokenizer, limit, may_lack_prompts=may_lack_prompts)

    return load_rows


def numbered(count: int) -> list[dict]:
    return [{"prompt": f"number {i}", "answer": i} for i in range(count)]


def test_held_out_prompts_are_a_fifth_at_most_and_never_trained_on(load):
    prompts = load(numbered(50))
    assert len(prompts.train) == 40
    assert len(prompts.held_out) == 10
    texts = [p.prompt for p in [*prompts.train, *prompts.held_out]]
    assert sorted(texts) == sorted(row["prompt"] for row in numbered(50))
    assert len(load(numbered(50), num_eval=3).held_out) == 3


def test_too_few_rows_to_hold_some_back_are_refused(load):
    with pytest.raises(UserError, match=r"4 usable rows, expected at least 5.*--data.eval-path"):
        load(numbered(4))


def test_an_eval_path_leaves_all_rows_to_training(load, tmp_path):
    path = tmp_path / "dev.csv"
    path.write_text("prompt,answer\n" + "".join(f"dev {i},{i}\n" for i in range(9)))
    prompts = load(numbered(3), eval_path=str(path), num_eval=4)
    assert len(prompts.train) == 3
    assert len(prompts.held_out) == 4
    assert all(p.prompt.startswith("dev") for p in prompts.held_out)


def test_an_eval_split_of_a_single_file_is_refused(load):
    with pytest.raises(UserError, match=r"'test' names a split .* single file"):
        load(numbered(9), eval_split="test")


@catches("rows without a prompt refused where environments begin them")
def test_rows_without_a_prompt_do_where_environments_begin_them(load):
    rows = [{"word": f"stone {i}"} for i in range(10)]
    prompts = load(rows, may_lack_prompts=True)
    found = [*prompts.train, *prompts.held_out]
    assert {(p.prompt, *p.ids) for p in found} == {("",)}
    assert sorted(p.columns["word"] for p in found) == [row["word"] for row in rows]
    assert common_columns(prompts) == ["word"]
    assert lengths_of(prompts.train).tolist() == [0] * 8
    with pytest.raises(UserError, match="has no column 'prompt'; its columns are: word"):
        load(rows)
    with pytest.raises(UserError, match="has no column 'wrod'"):
        load(rows, may_lack_prompts=True, prompt_column="wrod")
    named = load(rows, may_lack_prompts=True, prompt_column="word")
    assert named.train[0].prompt.startswith("stone")


def test_prompts_carry_their_ids_and_all_columns_of_their_row(load):
    prompts = load(numbered(5))
    first = prompts.train[0]
    assert first.ids[0] == BOS
    assert character_tokenizer().decode(first.ids[1:]) == first.prompt
    assert first.columns["prompt"] == first.prompt
    assert first.prompt == f"number {first.columns['answer']}"
    assert common_columns(prompts) == ["prompt", "answer"]


def test_rows_without_a_prompt_are_skipped_and_counted(load):
    bad = [{"prompt": None}, {"prompt": ""}, {"prompt": " \n"}, {"prompt": []}, {"answer": 1}]
    prompts = load(numbered(10) + bad)
    assert prompts.skipped == {"empty": 5}
    assert len(prompts.train) + len(prompts.held_out) == 10
    assert prompts.line() == "8 prompts to train on, 2 held out; 5 empty skipped"


def test_a_data_set_of_unusable_rows_is_refused(load):
    with pytest.raises(UserError, match=r"no usable row: of 3, 3 empty skipped"):
        load([{"prompt": ""}] * 3)


def test_an_overlong_prompt_is_an_error_that_names_row_and_lengths(load):
    rows = [*numbered(5), {"prompt": "x" * 30}]
    with pytest.raises(UserError, match=r"row 6: the prompt has 31 tokens, but only 20 fit"):
        load(rows)


@catches("prompts truncated on the right, or their BOS cut off")
def test_overlong_prompts_are_skipped_or_cut_on_the_left_and_counted(load):
    rows = [*numbered(5), {"prompt": "x" * 30 + "end"}]
    skipped = load(rows, overlong="skip")
    assert skipped.skipped == {"overlong": 1}
    assert len(skipped.train) + len(skipped.held_out) == 5
    cut = load(rows, overlong="truncate-left")
    longest = max([*cut.train, *cut.held_out], key=lambda p: len(p.ids))
    assert cut.num_cut == 1
    assert len(longest.ids) == 20
    assert longest.ids[0] == BOS
    assert character_tokenizer().decode(longest.ids).endswith("xend")
    assert cut.line().endswith("; 1 cut on the left")


def test_a_context_without_room_for_any_prompt_is_refused(load):
    with pytest.raises(UserError, match=r"leaves no token .*--sampling.max-new-tokens"):
        load(numbered(9), limit=0)


def test_a_missing_column_lists_those_there_are_and_suggests_one(load):
    rows = [{"promptt": "a", "answer": 1}] * 5
    with pytest.raises(UserError, match=r"no column 'prompt'.* promptt, answer. Use --data.prompt"):
        load(rows)
    with pytest.raises(UserError, match=r"Use --data.prompt-column question if"):
        load([{"id": 1, "question": "a"}] * 5)
    assert len(load(rows, prompt_column="promptt").train) == 4


def test_prompts_that_are_neither_text_nor_messages_are_refused(load):
    with pytest.raises(UserError, match=r"row 1, column 'prompt' holds int '7', expected text"):
        load([{"prompt": 7}] * 5)
    with pytest.raises(UserError, match=r"holds list .* expected text, or chat"):
        load([{"prompt": ["a", "b"]}] * 5)


def test_chat_and_text_prompts_may_be_mixed():
    chat = [{"role": "user", "content": "hi"}]
    tokenizer = character_tokenizer(chat=True)
    prompts = prompts_from_rows([{"prompt": "a"}, {"prompt": chat}, {"prompt": "b"}], tokenizer, 99)
    assert [tokenizer.decode(p.ids) for p in prompts] == ["<s>a", "<|user|>hi<|assistant|>", "<s>b"]
    assert prompts[1].prompt == chat


def test_a_path_is_required():
    with pytest.raises(UserError, match=r"data.path is missing.*--data.path"):
        load_prompts(DataSettings(), character_tokenizer(), 9)


def test_a_column_that_some_rows_lack_is_none_there_and_one_of_training_alone_is_not_offered(
    load, tmp_path
):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"prompt": "p", "answer": 1}) + "\n")
    rows = [{"prompt": f"q{i}", "answer": i} | ({"hint": "h"} if i else {}) for i in range(5)]
    prompts = load(rows, eval_path=str(held_out))
    assert [p.columns["hint"] for p in prompts.train] == [None, "h", "h", "h", "h"]
    assert common_columns(prompts) == ["prompt", "answer"]
