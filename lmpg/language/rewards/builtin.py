"""Reward functions that come with lmpg; data columns are parameters, options keyword-only ones.

They run in worker processes, so this module loads nothing that is slow to import.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from lmpg.language.rewards.answers import final_number, final_part

NAMES = (
    "exact_match",
    "numeric_answer",
    "matches_format",
    "length",
    "repetition",
    "math_verify",
    "reasoning_gym",
)
REFERENCES = {  # where the columns that they compare with come from
    "answer": "Name the one that holds the reference answer with --data.answer-column.",
    "reasoning_gym": "It is for the data of --data.path reasoning_gym:TASK.",
}


def exact_match(completions: list, answer: list) -> list[float]:
    """1 where the completion is the answer, but for space around it; else 0."""
    texts = map(_text, completions)
    return [float(text.strip() == str(right).strip()) for text, right in zip(texts, answer)]


def numeric_answer(completions: list, answer: list) -> list[float]:
    """1 where the final number of the completion equals that of the answer; else 0."""
    return [_same_number(_text(c), str(right)) for c, right in zip(completions, answer)]


def matches_format(completions: list, *, pattern: str, search: bool = False) -> list[float]:
    """1 where the whole completion, or with `search` a part of it, matches the pattern; else 0."""
    compiled = re.compile(pattern, re.DOTALL)
    match = compiled.search if search else compiled.fullmatch
    return [float(match(_text(completion)) is not None) for completion in completions]


def length(completion_ids: list, *, target: int, tolerance: int = 0) -> list[float]:
    """0 within `tolerance` tokens of `target`, falling by 1/target per token beyond, to -1."""
    if target < 1 or tolerance < 0:
        raise ValueError(f"target = {target}, tolerance = {tolerance}: expected > 0 and >= 0")
    beyond = [max(0, abs(len(ids) - target) - tolerance) for ids in completion_ids]
    return [-min(1.0, tokens / target) for tokens in beyond]


def repetition(completion_ids: list, *, n: int = 3, max_penalty: float = -1.0) -> list[float]:
    """`max_penalty` times the share of n-grams of tokens that came before in the completion."""
    if n < 1 or max_penalty > 0:
        raise ValueError(f"n = {n}, max_penalty = {max_penalty}: expected >= 1 and <= 0")
    return [max_penalty * _repeated_share(ids, n) for ids in completion_ids]


def math_verify(completions: list, answer: list) -> list[float]:
    """1 where math-verify finds the completion's answer equal to the reference; else 0."""
    try:
        from math_verify import parse, verify
    except ImportError:
        raise ImportError("math-verify is not installed: pip install 'lmpg[math]'") from None
    scores = []
    for completion, right in zip(completions, answer):
        gold = parse(f"${final_part(str(right))}$") or parse(str(right))
        if not gold:
            raise ValueError(f"math-verify reads no answer in the reference {str(right)[:80]!r}")
        scores.append(float(verify(gold, parse(_text(completion)))))
    return scores


def reasoning_gym(completions: list, reasoning_gym: list) -> list[float]:
    """The score of the task's own `score_answer`, for what is between <answer> tags, or for all."""
    scores = []
    for completion, item in zip(completions, reasoning_gym):
        task = reasoning_task(item["task"], item["arguments"])
        answer = tagged(_text(completion))
        scores.append(float(task.score_answer(answer, entry=task[item["index"]])))
    return scores


def _text(completion: Any) -> str:
    """A completion's text; that of chat prompts is a list of one message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def _same_number(completion: str, right: str) -> float:
    expected = final_number(right)
    if expected is None:
        raise ValueError(f"the reference {right[:80]!r} holds no number")
    return float(final_number(completion) == expected)


def _repeated_share(ids: list[int], n: int) -> float:
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def tagged(text: str) -> str:
    """What stands between the last <answer> tags, else all of the text."""
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return found[-1].strip() if found else text.strip()


def reasoning_task(name: str, arguments: dict[str, Any]) -> Any:
    """A task of reasoning-gym, made once for equal arguments."""
    return _task(name, json.dumps(arguments))


@functools.cache
def _task(name: str, arguments: str) -> Any:
    """The task whose questions the data holds; an entry is made anew from its index."""
    import reasoning_gym

    return reasoning_gym.create_dataset(name, **json.loads(arguments))
