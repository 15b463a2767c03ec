"""Process rewards: one number per token or per step, on the tokens where they belong."""

from __future__ import annotations

from functools import partial

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lmpg.language.data.tokenizing import completion_text, token_widths
from lmpg.language.rewards.process_rewards import pieces, step_ends
from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rewards.settings import RewardSettings
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny import EOS, tiny_tokenizer
from tests.support.tiny_tokenizers import character_tokenizer

TEXT = "a\nb\n\nc"


@pytest.fixture
def scorer(tmp_path):
    made: list[Scorer] = []

    def make(code: str, *names: str, process: str = "step", **settings) -> Scorer:
        (tmp_path / "mine.py").write_text(code)
        functions = tuple(f"{tmp_path / 'mine.py'}:{name}" for name in names or ("reward",))
        options = RewardSettings(functions=functions, process=process, **settings)
        made.append(Scorer(options, decode=partial(completion_text, tiny_tokenizer())))
        return made[-1]

    yield make
    for one in made:
        one.close()


def scored(scorer: Scorer, *completions: str):
    """Scores of completions of one token per character and an EOS."""
    ids = [[*tiny_tokenizer()(text)["input_ids"], EOS] for text in completions]
    return scorer.score(["p"] * len(ids), list(completions), ids, {})


def byte_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, and one for each of `words`, as byte-level BPE has them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {token: i for i, token in enumerate(alphabet)}
    merges = []
    for word in words:
        letters = next(piece for piece, _ in level.pre_tokenize_str(word))
        for end in range(2, len(letters) + 1):
            merges.append((letters[: end - 1], letters[end - 1]))
            vocabulary.setdefault(letters[:end], len(vocabulary))
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer, inner.decoder = level, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_steps_are_the_pieces_that_a_separator_ends():
    assert pieces(TEXT, "\n") == ["a\n", "b\n", "\n", "c"]
    assert [piece.rstrip("\n") for piece in pieces(TEXT, "\n")] == TEXT.splitlines()
    assert pieces("a\n", "\n") == ["a\n"]
    assert pieces("", "\n") == []
    assert pieces("a\n\nb\nc", "\n\n") == ["a\n\n", "b\nc"]


def places_by_prefixes(text, ids, separator, decode):
    """The slow way: the first token with which all of a step's text is there."""
    found, end = [], 0
    for piece in pieces(text, separator):
        end += len(piece)
        whole = (k for k in range(len(ids)) if decode([], ids[: k + 1]).startswith(text[:end]))
        found.append(next(whole) if piece.endswith(separator) else len(ids) - 1)
    return found


@catches("a step ends one token late, or in the middle of a character")
@pytest.mark.parametrize(
    "tokenizer",
    [byte_tokenizer(), byte_tokenizer("a\n\nb", "😀\n"), byte_tokenizer("\n\nb\n")],
    ids=["bytes", "tokens that straddle", "a step inside of a token"],
)
@pytest.mark.parametrize(
    "text", ["a\n\nb\nc", "😀\nüb\n\n\nb\n😀", "\n", "", "ends in ü\n", "no end", "a\n\nb\n"]
)
def test_a_step_ends_with_the_token_in_which_its_separator_ends(tokenizer, text):
    decode = partial(completion_text, tokenizer)
    ids = [*tokenizer(text)["input_ids"], tokenizer.vocab_size - 1]
    text = completion_text(tokenizer, [], ids)
    assert sum(token_widths(text, ids, decode)) == len(text)
    assert step_ends(text, ids, "\n", decode) == places_by_prefixes(text, ids, "\n", decode)


def test_a_space_that_the_tokenizer_strips_from_a_beginning_moves_no_step():
    tokenizer = character_tokenizer(space_first=True)
    prompt = tokenizer("It is", add_special_tokens=False)["input_ids"]
    ids = tokenizer("so\nor so", add_special_tokens=False)["input_ids"]
    text = completion_text(tokenizer, prompt, ids)
    assert text == " so\nor so"
    assert step_ends(text, ids, "\n", partial(completion_text, tokenizer))[0] == 3


def test_special_tokens_count_for_the_step_that_they_stand_in():
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    ids = tokenizer("a<think>\nb\n<think>", add_special_tokens=False)["input_ids"]
    decode = partial(completion_text, tokenizer)
    text = completion_text(tokenizer, [], [*ids, tokenizer.eos_token_id])
    assert text == "a<think>\nb\n<think>"
    assert step_ends(text, [*ids, tokenizer.eos_token_id], "\n", decode) == [2, 4, 6]


def test_bytes_that_are_no_character_delay_no_step():
    tokenizer = byte_tokenizer()
    ids = [*tokenizer("a")["input_ids"], 200, 200, *tokenizer("\nb")["input_ids"]]
    text = completion_text(tokenizer, [], ids)
    assert step_ends(text, ids, "\n", partial(completion_text, tokenizer)) == [3, 4]


@catches("the number of the last step lies before the EOS")
def test_each_number_sits_on_the_last_token_of_its_step(scorer):
    code = "def reward(completion_steps): return [[len(s) for s in c] for c in completion_steps]"
    scores = scored(scorer(code), TEXT, "ab\n", "", "abc")
    assert scores.steps == [[(1, 2), (3, 2), (4, 1), (6, 1)], [(2, 3)], [], [(3, 3)]]
    assert scores.totals == [6, 3, 0, 3]


def test_a_list_per_token_has_a_number_for_each_one_the_eos_too(scorer):
    code = "def reward(completion_ids): return [list(range(len(x))) for x in completion_ids]"
    scores = scored(scorer(code, process="token"), "ab", "")
    assert scores.steps == [[(0, 0), (1, 1), (2, 2)], [(0, 0)]]
    assert scores.totals == [3, 0]


@catches("numbers of two process rewards replace each other, or are not weighted")
def test_steps_are_weighted_added_and_part_of_the_total(scorer):
    code = """
import numpy as np
def many(completions): return [np.array([1, 2, 3, 4]), 10]
def more(completions): return [[1, 0, 0, 1], [5]]
def one(completions): return [100, 100]
"""
    scores = scored(scorer(code, "many", "more", "one", weights=(1, 10, 0.5)), TEXT, "x")
    assert scores.steps == [[(1, 11), (3, 2), (4, 3), (6, 14)], [(1, 50)]]
    assert scores.totals == [80, 110]
    assert scores.by_reward == {"many": [10, 10], "more": [2, 5], "one": [100, 100]}


@catches("NaN among the numbers of a completion counts as 0")
@pytest.mark.parametrize(
    ("process", "value", "message"),
    [
        ("none", "[1, 2, 3, 4]", "--rewards.process token or step"),
        ("step", "[1, 2, 3]", "it returned 3 numbers for the 4 steps of a completion"),
        ("token", "[1, 2, 3, 4]", "it returned 4 numbers for the 7 tokens"),
        ("step", "[1, 2, math.nan, 4]", "it returned nan, in a list of numbers"),
        ("step", "[1, 2, None, 4]", "it returned None, in a list of numbers"),
        ("step", "[1, 2, [3], 4]", "it returned a list, in a list of numbers"),
    ],
)
def test_a_list_that_cannot_be_placed_costs_its_sample_the_score(scorer, process, value, message):
    code = f"import math\ndef reward(completions): return [1.0, {value}]"
    scores = scored(scorer(code, process=process), "x", TEXT)
    assert scores.totals == [1.0, None]
    assert scores.steps == [[], []]
    assert message in scores.messages[0]


def test_steps_are_refused_at_the_start_to_a_function_that_gets_none(tmp_path):
    (tmp_path / "mine.py").write_text("def reward(completion_steps):\n    return []\n")
    function = f"{tmp_path / 'mine.py'}:reward"
    with pytest.raises(UserError, match=r"only with --rewards\.process step"):
        Scorer(RewardSettings(functions=(function,)), columns=["answer"])
    Scorer(RewardSettings(functions=(function,), process="step"), columns=["answer"]).close()


def test_a_sample_without_a_score_has_no_steps_either(scorer):
    code = "def a(completions): return [[1]]\ndef b(completions): return ['x']"
    scores = scored(scorer(code, "a", "b"), "x")
    assert (scores.totals, scores.steps) == ([None], [[]])


def test_a_row_that_was_lost_before_its_first_token_has_no_widths():
    assert token_widths("", [], lambda ids: "") == []
