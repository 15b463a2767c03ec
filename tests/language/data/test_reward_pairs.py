from __future__ import annotations

import json
from collections import Counter

import pytest

from lmpg.language.data.reward_pairs import (
    as_pairs,
    load_reward_pairs,
    match_labels,
    pairs_of_epoch,
    reward_pairs_from_rows,
)
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.tokenizing import scored_ids
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny_tokenizers import character_tokenizer

EOS = 2


@pytest.fixture
def load(tmp_path):
    def load_rows(rows, limit=50, tokenizer=None, **settings):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tokenizer = tokenizer or character_tokenizer(chat=True)
        return load_reward_pairs(DataSettings(path=str(path), **settings), tokenizer, limit)

    return load_rows


def texts_of(pairs) -> list[tuple[str, str]]:
    decode = character_tokenizer().decode
    return [(decode(p.chosen_ids), decode(p.rejected_ids)) for p in pairs]


@catches("scored text without EOS")
def test_explicit_and_implicit_prompts_give_the_same_pair():
    explicit = [{"prompt": "It was", "chosen": " good", "rejected": " bad"}]
    implicit = [{"chosen": "It was good", "rejected": "It was bad"}]
    tokenizer = character_tokenizer()
    assert reward_pairs_from_rows(explicit, tokenizer, 50) == reward_pairs_from_rows(
        implicit, tokenizer, 50
    )
    assert texts_of(reward_pairs_from_rows(explicit, tokenizer, 50)) == [
        ("<s>It was good</s>", "<s>It was bad</s>")
    ]


def test_a_pair_is_read_as_the_reward_model_will_read_it():
    tokenizer = character_tokenizer()
    pair = reward_pairs_from_rows([{"prompt": "a", "chosen": "b", "rejected": "c"}], tokenizer, 50)[
        0
    ]
    assert pair.chosen_ids == scored_ids(tokenizer, "a", "b")
    assert pair.chosen_ids[-1] == EOS


@pytest.mark.parametrize("whole", [False, True])
def test_chat_pairs_may_repeat_the_prompt_or_not(whole):
    question = {"role": "user", "content": "hi"}
    answers = [{"role": "assistant", "content": text} for text in ("yes", "no")]
    before = [question] if whole else []
    row = {"chosen": [*before, answers[0]], "rejected": [*before, answers[1]]}
    row["prompt"] = "hi" if whole else [question]
    pairs = reward_pairs_from_rows([row], character_tokenizer(chat=True), 50)
    expected = "<|user|>hi<|assistant|>"
    assert texts_of(pairs) == [(f"{expected}yes</s>", f"{expected}no</s>")]


def test_pairs_have_the_margin_of_their_row(load):
    rows = [{"chosen": f"a{i}", "rejected": "b", "margin": i / 4, "gap": 9.0} for i in range(6)]
    assert {pair.margin for pair in pairs_of_epoch(load(rows).train, 0, 0)} <= {
        i / 4 for i in range(6)
    }
    assert {
        pair.margin for pair in pairs_of_epoch(load(rows, margin_column="gap").train, 0, 0)
    } == {9.0}
    with pytest.raises(UserError, match=r"row 1, column 'margin' holds 'big', expected a finite"):
        load([{**rows[0], "margin": "big"}] * 5)
    with pytest.raises(UserError, match=r"no column 'gpa'.*--data.margin-column gap"):
        load(rows, margin_column="gpa")


def test_rows_without_a_preference_are_skipped_and_counted(load):
    rows = [{"chosen": f"a{i}", "rejected": "b"} for i in range(10)]
    rows += [{"chosen": "same", "rejected": "same"}, {"chosen": "", "rejected": "b"}]
    pairs = load(rows)
    assert pairs.skipped == {"identical": 1, "empty": 1}
    assert pairs.line() == "8 pairs to train on, 2 held out; 1 identical, 1 empty skipped"


def test_an_overlong_pair_counts_once(load):
    rows = [{"chosen": f"a{i}", "rejected": "b"} for i in range(9)]
    rows += [{"chosen": "c" * 99, "rejected": "d" * 99}]
    assert load(rows, overlong="skip").skipped == {"overlong": 1}
    with pytest.raises(UserError, match=r"row 10: the text has 101 tokens"):
        load(rows)


@catches("a pair's order ignores its labels")
def test_any_higher_label_beats_any_lower(load):
    pairs = load([{"text": f"{i % 3} text {i}", "label": i % 3} for i in range(60)])
    for epoch in range(3):
        for chosen, rejected in texts_of(pairs_of_epoch(pairs.train, epoch, seed=0)):
            assert chosen[3] > rejected[3]
    for chosen, rejected in texts_of(as_pairs(pairs.held_out, 0, 0)):
        assert chosen[3] > rejected[3]


@pytest.mark.parametrize("labels", [[0] * 7 + [1] * 30, [0] * 8 + [1] * 8, [1, 2, 3, 4, 5] * 6])
def test_every_text_is_used_and_the_majoritys_texts_once(labels):
    matches = match_labels(labels, epoch=0, seed=0)
    used = Counter(i for pair in matches for i in pair)
    assert set(used) == set(range(len(labels)))
    assert all(labels[high] > labels[low] for high, low in matches)
    largest, size = Counter(labels).most_common(1)[0]
    if size * 2 >= len(labels):
        assert len(matches) == size
        assert {used[i] for i, label in enumerate(labels) if label == largest} == {1}


@catches("pairs with the same partners in every epoch")
def test_partners_change_between_epochs_and_with_the_seed_only():
    labels = [0, 1] * 20
    assert match_labels(labels, 0, 0) == match_labels(labels, 0, 0)
    assert set(match_labels(labels, 0, 0)) != set(match_labels(labels, 1, 0))
    assert set(match_labels(labels, 0, 0)) != set(match_labels(labels, 0, 1))


def test_preference_pairs_are_shuffled_anew_each_epoch_and_all_used(load):
    pairs = load([{"chosen": f"a{i}", "rejected": "b"} for i in range(30)])
    first, second = (
        texts_of(pairs_of_epoch(pairs.train, 0, 1)),
        texts_of(pairs_of_epoch(pairs.train, 1, 1)),
    )
    assert sorted(first) == sorted(second)
    assert first != second


def test_held_out_texts_are_not_trained_on(load):
    pairs = load([{"text": f"text {i}", "label": i % 2} for i in range(50)])
    train = {text for pair in texts_of(pairs_of_epoch(pairs.train, 0, 0)) for text in pair}
    held_out = {text for pair in texts_of(as_pairs(pairs.held_out, 0, 0)) for text in pair}
    assert train.isdisjoint(held_out)


def test_labels_that_cannot_be_ranked_are_refused(load):
    with pytest.raises(UserError, match=r"'label' holds 'good', expected a finite number"):
        load([{"text": "a", "label": "good"}] * 5)
    with pytest.raises(UserError, match="all labels are 1, expected two different values at least"):
        pairs_of_epoch(load([{"text": "a", "label": 1}] * 10).train, 0, 0)


def test_columns_of_no_known_format_are_refused(load):
    with pytest.raises(UserError, match=r"has the columns a, b; expected 'chosen' and 'rejected'"):
        load([{"a": "x", "b": "y"}] * 5)
    with pytest.raises(UserError, match=r"no column 'rejected'.* chosen, rejectd.*rejectd"):
        load([{"chosen": "x", "rejectd": "y"}] * 5)


def test_columns_can_be_renamed(load):
    rows = [{"good": f"x{i}", "poor": "y", "question": "q"} for i in range(5)]
    pairs = load(rows, chosen_column="good", rejected_column="poor", prompt_column="question")
    assert all(
        chosen.startswith("<s>qx") for chosen, _ in texts_of(pairs_of_epoch(pairs.train, 0, 0))
    )
