"""Reviews with a mood: a writer that makes data, and the gold scorer that reads any text.

The gold scorer is for evaluation alone. What trains is written reviews and the preferences of
raters who know each review's plan and sometimes err.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache

from lmpg.language.worlds.tasks.review_grammar import (
    CLOSINGS,
    JUDGEMENTS,
    KINDS,
    RULES,
    VERBS,
    Rules,
)

OPINIONS = 3
"""Opinions in a review: two sentences and the closing."""

_SYMBOL = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Review:
    """One review; `plan` holds the mood of each of its opinions, such as `++-`."""

    opening: str
    response: str
    plan: str

    @property
    def balance(self) -> int:
        """Positive minus negative opinions, as planned."""
        return self.plan.count("+") - self.plan.count("-")


def openings(number: int, rng: random.Random) -> list[str]:
    """`number` different neutral first sentences, which are the prompts."""
    found: dict[str, None] = {}
    while len(found) < number:
        found[write(RULES, f"{{opening.{rng.choice(KINDS)}}}", rng)] = None
    return list(found)


def write_review(opening: str, positivity: float, rng: random.Random) -> Review:
    """A review that goes on from `opening`; each opinion is positive with that probability."""
    plan = "".join("+" if rng.random() < positivity else "-" for _ in range(OPINIONS))
    return Review(opening, write(RULES, _form(kind_of(opening), plan), rng), plan)


def mixed_review(opening: str, rng: random.Random) -> Review:
    """A review in a good or a bad mood, evenly; four opinions of five follow the mood."""
    return write_review(opening, rng.choice((0.8, 0.2)), rng)


def garbled(review: Review, rng: random.Random) -> Review:
    """The review with its words shuffled, with one word repeated many times, or cut short."""
    words = review.response.split()
    damage = rng.choice(("shuffle", "repeat", "cut"))
    if damage == "shuffle":
        rng.shuffle(words)
    elif damage == "repeat":
        at = rng.randrange(len(words))
        words[at + 1 :] = [words[at]] * rng.randint(3, 12)
    else:
        words = words[: rng.randint(1, len(words) - 1)]
    return Review(review.opening, " " + " ".join(words), review.plan)


def preference(
    opening: str, rng: random.Random, error_rate: float, garbled_share: float
) -> dict[str, str]:
    """A rater's choice between two reviews, as columns `prompt`, `chosen` and `rejected`.

    The one with more positive opinions wins, and any proper review over the same one garbled.
    """
    if rng.random() < garbled_share:
        best = mixed_review(opening, rng)
        worst = garbled(best, rng)
    else:
        best = worst = write_review(opening, rng.random(), rng)
        while worst.balance == best.balance:
            worst = write_review(opening, rng.random(), rng)
        best, worst = sorted((best, worst), key=lambda review: -review.balance)
    if rng.random() < error_rate:
        best, worst = worst, best
    return {"prompt": opening, "chosen": best.response, "rejected": worst.response}


def mood(response: str) -> int:
    """Gold: positive minus negative opinion words of any text."""
    found = [_MOODS[x.strip(" .")] for x in _OPINION.findall(response)]
    return found.count("+") - found.count("-")


def is_grammatical(opening: str, response: str) -> bool:
    """Gold: the response is a whole review about what the opening is about."""
    return bool(_response_pattern(kind_of(opening)).fullmatch(response))


def gold(prompts: list[str], completions: list[str]) -> dict[str, float]:
    """Shares of the responses with a positive mood, of those that are in the grammar, and of
    those that are both."""
    number = max(len(completions), 1)
    positive = [mood(x) > 0 for x in completions]
    grammatical = list(map(is_grammatical, prompts, completions))
    return {
        "gold": sum(map(all, zip(positive, grammatical))) / number,
        "gold_positive": sum(positive) / number,
        "gold_grammatical": sum(grammatical) / number,
    }


def write(rules: Rules, text: str, rng: random.Random) -> str:
    """`text` with each `{symbol}` replaced by one of its alternatives, drawn evenly."""
    return _SYMBOL.sub(lambda m: write(rules, rng.choice(rules[m[1]]), rng), text)


def pattern(rules: Rules, text: str) -> str:
    """The regular expression of all that `write` can make of `text`; rules must not recurse."""

    @cache
    def symbol(name: str) -> str:
        return "(?:" + "|".join(map(expand, rules[name])) + ")"

    def expand(part: str) -> str:
        pieces = _SYMBOL.split(part)  # plain text and symbol names take turns
        return "".join(symbol(x) if i % 2 else re.escape(x) for i, x in enumerate(pieces))

    return expand(text)


@cache
def kind_of(opening: str) -> str:
    """What the opening is about, one of `KINDS`."""
    for kind in KINDS:
        if re.fullmatch(pattern(RULES, f"{{opening.{kind}}}"), opening):
            return kind
    raise ValueError(f"not an opening of a review: {opening!r}")


def _form(kind: str, plan: str) -> str:
    first, second, closing = tuple(plan)
    return f"{{sentence.{kind}{first}}}{{sentence.{kind}{second}}}{{closing{closing}}}"


@cache
def _response_pattern(kind: str) -> re.Pattern[str]:
    symbols = [f"sentence.{kind}+", f"sentence.{kind}-", f"both.{kind}+-", f"both.{kind}-+"]
    sentence = "|".join(pattern(RULES, f"{{{symbol}}}") for symbol in symbols)
    closing = "|".join(pattern(RULES, f"{{closing{mood}}}") for mood in "+-")
    return re.compile(f"(?:{sentence}){{{OPINIONS - 1}}}(?:{closing})")


def _moods() -> dict[str, str]:
    phrases = [(x, mood) for part in JUDGEMENTS.values() for mood in part for x in part[mood]]
    phrases += [(x, mood) for mood, verbs in VERBS.items() for x in verbs]
    phrases += [(x.strip(" ."), mood) for mood, closings in CLOSINGS.items() for x in closings]
    return dict(phrases)


_MOODS = _moods()
_LONGEST_FIRST = sorted(_MOODS, key=len, reverse=True)
_OPINION = re.compile(r"\b(?:" + "|".join(map(re.escape, _LONGEST_FIRST)) + r")\b")
