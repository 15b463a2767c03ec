"""Held-out examples as rows of samples.jsonl, so that one sees what a stage makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmpg.language.data.texts import Text
from lmpg.language.data.tokenizing import completion_text, shared_length
from lmpg.training.token_view import four_digits

SHOWN = 4
"""Held-out examples that are shown, the first ones."""


def prompt_and_answer(tokenizer: Any, text: Text) -> tuple[str, str]:
    """Both parts of a text, with their special tokens."""
    start = text.prompt_length
    return parts_of(tokenizer, text.ids[:start], text.ids[start:])


def parts_of(tokenizer: Any, prompt: list[int], answer: list[int]) -> tuple[str, str]:
    """Texts of a prompt's ids and of those that follow it, with their special tokens."""
    head = tokenizer.decode(prompt, skip_special_tokens=False)
    return head, completion_text(tokenizer, prompt, answer, eos_token_ids=())


def pair_row(prompt: str, answers: tuple[str, str], scores: tuple[float, float]) -> dict[str, Any]:
    """A pair's row: its texts, the score or reward of each, and the margin between them."""
    return {
        "prompt": prompt,
        "chosen": answers[0],
        "rejected": answers[1],
        "score_chosen": four_digits(scores[0]),
        "score_rejected": four_digits(scores[1]),
        "margin": four_digits(scores[0] - scores[1]),
    }


def answer_row(prompt: str, answer: str, label: str, score: float) -> dict[str, Any]:
    """A labelled answer's row."""
    return {"prompt": prompt, "completion": answer, "label": label, "score": four_digits(score)}


def whole_pair_row(
    tokenizer: Any, ids: tuple[list[int], list[int]], scores: tuple[float, float]
) -> dict[str, Any]:
    """The row of two whole texts; what both begin with is the prompt."""
    start = shared_length(*ids)
    prompt = ids[0][:start]
    answers = [parts_of(tokenizer, prompt, x[start:])[1] for x in ids]
    return pair_row(parts_of(tokenizer, prompt, [])[0], (answers[0], answers[1]), scores)


def first_few(examples: Sequence[Any]) -> list[Any]:
    """Those that are shown."""
    return list(examples[:SHOWN])
