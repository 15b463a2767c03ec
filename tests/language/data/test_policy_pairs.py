"""Preferences: where an implicit prompt ends, and what becomes of rows that are of no use."""

from __future__ import annotations

import json

import pytest

from lmpg.language.data.policy_pairs import (
    LabelledCompletion,
    load_labelled_completions,
    load_preference_pairs,
    with_mismatched,
)
from lmpg.language.data.preference_rows import preference
from lmpg.language.data.prompts import load_prompts
from lmpg.language.data.reward_pairs import load_reward_pairs
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.texts import Text, load_texts
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny_tokenizers import character_tokenizer

HH = "\n\nHuman: hi\n\nAssistant: yo\n\nHuman: why?\n\nAssistant:"


@pytest.fixture
def settings(tmp_path):
    def made(rows, **changes) -> DataSettings:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DataSettings(path=str(path), **changes)

    return made


def split(chosen, rejected, **columns) -> tuple:
    found = preference({"chosen": chosen, "rejected": rejected, **columns}, DataSettings(), "row")
    return found.prompt, found.chosen, found.rejected


@catches("implicit prompt splits a word", "implicit prompt runs into the answers")
@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        (HH + " I think so.", HH + " I think not.", HH),
        (HH + " I think so.", HH, HH),
        ("It was good", "It was bad", "It was"),
        ("It was good.", "It was goodness.", "It was"),
        ("pi is 3.14", "pi is 3.15", "pi is"),
        ("A\nB c", "A\nB d", "A\nB"),
        ("same start: x", "other", ""),
        ("### Response: yes", "### Response: no", "### Response:"),
        (
            "<|im_start|>user\nq\n<|im_start|>assistant\nyes",
            "<|im_start|>user\nq\n<|im_start|>assistant\nno",
            "<|im_start|>user\nq\n<|im_start|>assistant\n",
        ),
        ("今天天气很好", "今天天气很坏", "今天天气很"),
        ("caf\u0065\u0301 a", "caf\u0065\u0300 b", ""),
        ("q\n\nHuman: a b", "q\n\nHuman: a c", "q\n\nHuman: a"),
    ],
)
def test_an_implicit_prompt_ends_at_the_last_turn_or_between_words(chosen, rejected, prompt):
    found = split(chosen, rejected)
    assert found == (prompt, chosen[len(prompt) :], rejected[len(prompt) :])


def message(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def test_of_chat_the_shared_messages_are_the_prompt():
    shared = [message("user", "hi"), message("assistant", "yo"), message("user", "why?")]
    good, poor = [message("assistant", "so")], [message("assistant", "no")]
    assert split(shared + good, shared + poor) == (shared, good, poor)
    assert split(good, poor, prompt="hi") == ("hi", good, poor)
    assert split(shared + good, shared + poor, prompt="ignored") == (shared, good, poor)
    with pytest.raises(UserError, match="one of chosen and rejected is text"):
        split("text", poor)


def decoded(tokenizer, text: Text) -> tuple[str, str]:
    return tokenizer.decode(text.ids[: text.prompt_length]), tokenizer.decode(
        text.ids[text.prompt_length :]
    )


def test_implicit_and_explicit_prompts_give_the_same_comparisons(settings):
    tokenizer = character_tokenizer()
    implicit = [{"chosen": f"{HH} good {i}", "rejected": f"{HH} poor {i}"} for i in range(6)]
    explicit = [{"prompt": HH, "chosen": f" good {i}", "rejected": f" poor {i}"} for i in range(6)]
    found = load_preference_pairs(settings(implicit), tokenizer, 99)
    assert found == load_preference_pairs(settings(explicit), tokenizer, 99)
    pair = found.train[0]
    assert decoded(tokenizer, pair.chosen) == ("<s>" + HH, " good 0</s>")
    assert decoded(tokenizer, pair.rejected) == ("<s>" + HH, " poor 0</s>")


@catches("an empty answer of an implicit prompt is kept")
def test_rows_of_no_use_are_skipped_and_counted_by_reason(settings):
    rows = [{"chosen": f"{HH} a{i}", "rejected": f"{HH} b"} for i in range(10)]
    rows += [{"chosen": f"{HH} a", "rejected": HH}, {"chosen": f"{HH} ", "rejected": f"{HH} b"}]
    rows += [{"chosen": HH, "rejected": HH}, {"chosen": None, "rejected": HH}]
    for load in (load_preference_pairs, load_reward_pairs):
        found = load(settings(rows), character_tokenizer(), 99)
        assert found.skipped == {"empty": 3, "identical": 1}
        assert found.line().startswith("8 pairs to train on, 2 held out; 3 empty, 1 identical")


def test_chats_that_part_at_a_question_are_skipped(settings):
    good = [message("user", "hi"), message("assistant", "yo")]
    rows = [
        {"chosen": good, "rejected": [good[0], message("assistant", f"n{i}")]} for i in range(6)
    ]
    rows += [{"chosen": good, "rejected": [message("user", "ho"), message("assistant", "no")]}]
    found = load_preference_pairs(settings(rows), character_tokenizer(chat=True), 99)
    assert found.skipped == {"with different questions": 1}


@catches("answer cut instead of its prompt")
def test_an_overlong_prompt_is_cut_and_the_answers_stay_whole(settings):
    rows = [{"prompt": "p" * 40, "chosen": f"yes, answer {i}", "rejected": "no"} for i in range(5)]
    rows += [{"prompt": "p", "chosen": "y" * 60, "rejected": "no"}]
    tokenizer = character_tokenizer()
    with pytest.raises(UserError, match=r"row 1: the text has 55 tokens"):
        load_preference_pairs(settings(rows), tokenizer, 30)
    assert load_preference_pairs(
        settings(rows[:4] + [{**rows[4], "prompt": "p"}] * 5, overlong="skip"), tokenizer, 30
    ).skipped == {"overlong": 4}
    found = load_preference_pairs(settings(rows, overlong="truncate-left"), tokenizer, 30)
    assert found.skipped == {"overlong answer": 1}
    assert found.num_cut == 5
    for pair in found.train:
        assert len(pair.chosen.ids) == 30
        assert (
            pair.chosen.ids[: pair.chosen.prompt_length]
            == pair.rejected.ids[: pair.rejected.prompt_length]
        )
        assert decoded(tokenizer, pair.chosen)[0].startswith("<s>p")
        assert decoded(tokenizer, pair.rejected)[1] == "no</s>"


def test_from_preferences_the_chosen_answer_is_learned_and_the_prompts_are_asked(settings):
    rows = [{"chosen": f"{HH} good {i}", "rejected": f"{HH} poor"} for i in range(5)]
    rows += [{"chosen": HH, "rejected": f"{HH} poor"}]
    tokenizer = character_tokenizer()
    texts = load_texts(settings(rows), tokenizer, 99)
    assert decoded(tokenizer, texts.train[0]) == ("<s>" + HH, " good 0</s>")
    assert texts.skipped == {"empty": 1}
    prompts = load_prompts(settings(rows), tokenizer, 99)
    assert {prompt.prompt for prompt in prompts.train} == {HH}
    assert len(prompts.train) + len(prompts.held_out) == 6


def labelled(labels) -> list[dict]:
    return [{"prompt": f"q{i}", "completion": f" a{i}", "label": x} for i, x in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([True, False] * 5, [True, False] * 4),
        ([1, 0] * 5, [True, False] * 4),
        ([1, -1] * 5, [True, False] * 4),
        ([2.5, 7.0] * 5, [False, True] * 4),
        ([True] * 10, [True] * 8),
        ([0] * 10, [False] * 8),
    ],
)
def test_of_two_labels_the_higher_one_marks_desirable_answers(settings, labels, expected):
    found = load_labelled_completions(settings(labelled(labels)), character_tokenizer(), 50)
    by_prompt = {character_tokenizer().decode(x.text.ids): x.desirable for x in found.train}
    for i, label in enumerate(labels):
        text = f"<s>q{i} a{i}</s>"
        assert by_prompt.get(text, (expected * 2)[i]) == (expected * 2)[i], label


@pytest.mark.parametrize("labels", [[1, 2, 3] * 3, ["good", "bad"] * 4, [7] * 8])
def test_labels_of_unclear_meaning_are_refused(settings, labels):
    with pytest.raises(UserError, match=r"data.label_column: .* expected true and false, or two"):
        load_labelled_completions(settings(labelled(labels)), character_tokenizer(), 50)


def test_preferences_are_taken_apart_into_judged_answers(settings):
    rows = [{"prompt": f"q{i}", "chosen": " yes", "rejected": " no"} for i in range(6)]
    found = load_labelled_completions(settings(rows), character_tokenizer(), 50)
    everything = [*found.train, *found.held_out]
    assert sum(answer.desirable for answer in everything) == 6
    assert len(everything) == 12


def answered(prompt: list[int], answer: list[int]) -> Text:
    return Text(prompt + answer, [False] * len(prompt) + [True] * len(answer))


def test_a_mismatched_answer_is_another_prompts_and_fits_into_the_context():
    judged = [(answered([i // 2] * 5, [10 + i] * (1 + i % 7)), True) for i in range(40)]
    for answer, (text, _) in zip(with_mismatched(judged, 9, []), judged):
        assert isinstance(answer, LabelledCompletion)
        assert answer.text == text
        other = answer.mismatched
        assert len(other.ids) <= 9
        assert set(other.ids[: other.prompt_length]) == set(text.ids[:5])
        assert (other.ids[other.prompt_length] - 10) // 2 != text.ids[0]
        assert all(other.loss_mask[other.prompt_length :])


@catches("without prompt and BOS the rejected answer begins with the chosen one's token")
def test_answers_with_nothing_before_them_to_begin_from_alike_are_skipped(settings):
    """Without a prompt and a BOS the first token of each answer would be its prompt."""
    rows = [{"prompt": "", "chosen": "good", "rejected": "bad"}] * 3
    rows += [{"prompt": "p", "chosen": "good", "rejected": "bad"}] * 7
    found = load_preference_pairs(settings(rows), character_tokenizer(bos=False), 32)
    assert found.skipped == {"without a common prompt": 3}
    answers = load_labelled_completions(settings(rows), character_tokenizer(bos=False), 32)
    assert answers.skipped == {"without a common prompt": 3}
