from __future__ import annotations

import random
import re

import pytest

from lmpg.language.worlds.tasks import review_texts
from lmpg.language.worlds.tasks.review_grammar import RULES, Rules
from lmpg.language.worlds.tasks.review_texts import pattern, write

RULES_OF_TWO = {"a": ("x", "y{b}"), "b": ("1", "2", "(3)")}


def count(rules: Rules, text: str) -> int:
    """How many derivations `text` has."""
    total = 1
    for name in re.findall(r"{([^{}]+)}", text):
        total *= sum(count(rules, alternative) for alternative in rules[name])
    return total


def written(number: int, seed: int = 0) -> list[review_texts.Review]:
    rng = random.Random(seed)
    return [
        review_texts.mixed_review(opening, rng) for opening in review_texts.openings(number, rng)
    ]


def test_a_grammar_recognises_exactly_what_it_writes():
    rng = random.Random(0)
    texts = {write(RULES_OF_TWO, "{a}{a}", rng) for _ in range(500)}
    assert len(texts) == count(RULES_OF_TWO, "{a}{a}") == 16
    recognised = re.compile(pattern(RULES_OF_TWO, "{a}{a}"))
    assert all(recognised.fullmatch(text) for text in texts)
    assert not any(recognised.fullmatch(text) for text in ("", "x", "xxx", "y", "y3x", "xy(3"))


def test_openings_differ_are_neutral_and_say_what_is_reviewed():
    openings = review_texts.openings(500, random.Random(0))
    assert len(set(openings)) == 500
    assert {review_texts.mood(opening) for opening in openings} == {0}


def test_written_reviews_are_grammatical_and_nearly_all_distinct():
    made = written(400)
    assert all(review_texts.is_grammatical(review.opening, review.response) for review in made)
    assert len({review.response for review in made}) > 0.97 * len(made)


def test_moods_are_balanced_and_gold_reads_what_was_planned():
    made = written(1000)
    positive = sum(review_texts.mood(review.response) > 0 for review in made) / len(made)
    assert 0.4 < positive < 0.6
    for review in made:
        assert (review_texts.mood(review.response) > 0) == (review.balance > 0) or "and" in (
            review.response
        )


def test_gold_counts_opinions_of_ungrammatical_text_too():
    assert review_texts.mood("") == 0
    assert review_texts.mood("delicious delicious, rude") == 1
    assert review_texts.mood(" We disliked the chef.") == -1
    assert review_texts.mood(" The chef was unkindly") == 0
    assert review_texts.mood(" I would never come again. I would gladly come again.") == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + " It was a joy.",
        lambda text: text.strip(),
        lambda text: text.replace(" was ", " were ").replace(" the ", " were "),
        lambda text: " delicious" * 12 + ".",
        lambda text: " " + " ".join(reversed(text.split())),
        lambda text: "",
    ],
)
def test_a_damaged_review_is_not_grammatical(change):
    for review in written(50):
        if change(review.response) != review.response:
            assert not review_texts.is_grammatical(review.opening, change(review.response))


def test_garbled_reviews_lose_to_proper_ones_and_good_moods_to_bad_ones():
    rng = random.Random(0)
    opening = review_texts.openings(1, rng)[0]
    pairs = [review_texts.preference(opening, rng, 0.0, 0.0) for _ in range(200)]
    better = [
        review_texts.mood(pair["chosen"]) - review_texts.mood(pair["rejected"]) for pair in pairs
    ]
    assert sum(x > 0 for x in better) > 190
    spoilt = [review_texts.preference(opening, rng, 0.0, 1.0) for _ in range(200)]
    assert all(review_texts.is_grammatical(opening, pair["chosen"]) for pair in spoilt)
    broken = sum(not review_texts.is_grammatical(opening, pair["rejected"]) for pair in spoilt)
    assert broken > 195


def test_raters_err_at_their_rate():
    opening = review_texts.openings(1, random.Random(0))[0]

    def drawn(error_rate: float) -> list[dict[str, str]]:
        rng = random.Random(1)
        return [review_texts.preference(opening, rng, error_rate, 0.0) for _ in range(400)]

    wrong = sum(
        review_texts.mood(p["chosen"]) < review_texts.mood(p["rejected"]) for p in drawn(0.25)
    )
    assert 0.15 < wrong / 400 < 0.35


def test_an_unknown_opening_is_refused():
    with pytest.raises(ValueError, match="not an opening"):
        review_texts.is_grammatical("Once upon a time", " It was a joy.")


def test_no_word_is_good_and_bad_at_once():
    good = {name for name in RULES if name.endswith("+") and "{" not in "".join(RULES[name])}
    for name in good:
        assert not set(RULES[name]) & set(RULES[f"{name[:-1]}-"])
