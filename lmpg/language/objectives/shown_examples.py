"""Held-out examples as rows of samples.jsonl, so that one sees what a stage makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lmpg.language.data.texts import Text
from lmpg.language.data.tokenizing import completion_text, shared_length, token_texts
from lmpg.runs.log_lines import SIDES
from lmpg.training.token_view import LONGEST_PROMPT, TOKENS, four_digits, kept_of, short

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
        **dict(zip(SIDES, answers)),
        **{f"score_{side}": four_digits(score) for side, score in zip(SIDES, scores)},
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


def with_answer_tokens(
    rows: list[dict[str, Any]],
    tokenizer: Any,
    texts: list[Text],
    logprobs: list[list[float]],
    first: list[list[float]],
) -> list[dict[str, Any]]:
    """The rows with the tokens of their answers: log π and log π − log π_ref of each, and the sums
    of both over all tokens.

    texts: those of each row's answers, one after the other: two of a pair. logprobs, first: of
    their answers' tokens, under the policy and the reference; NaN of those that teach nothing.
    """
    found = (_answer_tokens(tokenizer, *each) for each in zip(texts, logprobs, first))
    made = []
    for row in rows:
        is_pair = SIDES[0] in row
        tokens: dict[str, Any] = {side: next(found) for side in SIDES} if is_pair else next(found)
        made.append({**row, TOKENS: {"prompt": row["prompt"][-LONGEST_PROMPT:], **tokens}})
    return made


def _answer_tokens(
    tokenizer: Any, text: Text, logprobs: list[float], first: list[float]
) -> dict[str, Any]:
    start = text.prompt_length
    prompt, answer = text.ids[:start], text.ids[start:]
    columns = {"logprob": logprobs, "log_ratio": [x - y for x, y in zip(logprobs, first)]}
    return {
        "length": len(answer),
        "texts": kept_of(token_texts(tokenizer, prompt, answer)),
        **{name: short(torch.tensor(kept_of(x))) for name, x in columns.items()},
        "sums": {name: four_digits(_sum(x)) for name, x in columns.items()},
    }


def _sum(values: list[float]) -> float:
    """The sum of what is known."""
    return sum(x for x in values if math.isfinite(x))


def first_few(examples: Sequence[Any]) -> list[Any]:
    """Those that are shown."""
    return list(examples[:SHOWN])
