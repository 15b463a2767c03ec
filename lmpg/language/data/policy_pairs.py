"""Answers to compare with each other or to judge one by one, for DPO, KTO and their kin."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lmpg.language.data.order import random_numbers
from lmpg.language.data.preference_rows import (
    Preference,
    is_empty,
    is_preference,
    preference,
    require_preference_columns,
)
from lmpg.language.data.row_filter import Sieve, size_line
from lmpg.language.data.rows import Row, columns_of, require_column
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.splits import load_split
from lmpg.language.data.texts import Text, fitting, whole_text
from lmpg.language.data.tokenizing import cut_left, start_ids
from lmpg.settings.section import UserError


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt, whose ids both texts begin with; only the answers are learned.

    reference: log π_ref of both answers, where it is known.
    """

    chosen: Text
    rejected: Text
    reference: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Answer:
    """A prompt and an answer that is desirable or not, and the prompt with an answer to another.

    reference: log π_ref of the answer and of the other one, where they are known.
    """

    text: Text
    mismatched: Text
    desirable: bool
    reference: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class JudgedSet:
    """Comparisons or answers to train on and held out, and what was left out (reason → rows)."""

    train: list[Any]
    held_out: list[Any]
    skipped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0

    def line(self) -> str:
        """How many there are, and what was left out, for the log."""
        what = "answers" if self.train and isinstance(self.train[0], Answer) else "pairs"
        return size_line(what, self.train, self.held_out, self.skipped, self.truncated)


def load_comparisons(settings: DataSettings, tokenizer: Any, max_tokens: int) -> JudgedSet:
    """Comparisons of `data.path`, held-out ones from `data.eval_path` or else held back."""
    sieve = Sieve(max_tokens, settings.overlong, start_ids(tokenizer), "text")

    def read(rows: list[Row], source: str) -> list[Comparison]:
        return comparisons_from_rows(rows, tokenizer, sieve, settings, source)

    return JudgedSet(*load_split(settings, read), dict(sieve.skipped), sieve.truncated)


def load_answers(settings: DataSettings, tokenizer: Any, max_tokens: int) -> JudgedSet:
    """Judged answers of `data.path`, held-out ones from `data.eval_path` or else held back."""
    sieve = Sieve(max_tokens, settings.overlong, start_ids(tokenizer), "text")
    train, held_out = load_split(
        settings, lambda rows, source: _judged(rows, tokenizer, sieve, settings, source)
    )
    train, held_out = (mismatched(part, max_tokens, sieve.start) for part in (train, held_out))
    return JudgedSet(train, held_out, dict(sieve.skipped), sieve.truncated)


def comparisons_from_rows(
    rows: list[Row],
    tokenizer: Any,
    sieve: Sieve,
    settings: DataSettings | None = None,
    source: str = "rows",
) -> list[Comparison]:
    """Usable rows as comparisons."""
    settings = settings or DataSettings()
    require_preference_columns(rows, settings, source)
    found = []
    for where, each in _preferences(rows, sieve, settings, source):
        chosen = whole_text(tokenizer, each.prompt, each.chosen, where)
        rejected = whole_text(tokenizer, each.prompt, each.rejected, where)
        if chosen.ids[: chosen.start] != rejected.ids[: rejected.start]:
            sieve.skipped["without a common prompt"] += 1  # no prompt and no BOS before the answers
            continue
        longest = max(len(text.ids) - text.start for text in (chosen, rejected))
        before = sieve.before(chosen.ids[: chosen.start], longest, where)
        if before is not None:
            found.append(Comparison(_after(before, chosen), _after(before, rejected)))
    return sieve.some(found, len(rows), source)


def answers_from_rows(rows: list[Row], tokenizer: Any, sieve: Sieve) -> list[Answer]:
    """Judged answers of rows in memory, which have the default columns."""
    judged = _judged(rows, tokenizer, sieve, DataSettings(), "rows")
    return mismatched(judged, sieve.max_tokens, sieve.start)


def mismatched(judged: list[tuple[Text, bool]], max_tokens: int, start: list[int]) -> list[Answer]:
    """Each answer beside its prompt with the answer to another prompt: its neighbour's in a fixed
    shuffle, or the next one's whose prompt differs."""
    order = random_numbers("mismatched", len(judged)).permutation(len(judged)).tolist()
    prompts = [text.ids[: text.start] for text, _ in judged]
    found: dict[int, Answer] = {}
    for place, i in enumerate(order):
        others = (order[(place + k) % len(order)] for k in range(1, min(len(order), 100)))
        other = judged[next((j for j in others if prompts[j] != prompts[i]), order[place - 1])][0]
        answer = other.ids[other.start :]
        before = cut_left(prompts[i], max(max_tokens - len(answer), 1), start)
        found[i] = Answer(judged[i][0], _after(before, other), judged[i][1])
    return [found[i] for i in range(len(judged))]


def _after(prompt: list[int], text: Text) -> Text:
    """The answer of `text` after that prompt."""
    learned = [False] * len(prompt) + text.learned[text.start :]
    return Text(prompt + text.ids[text.start :], [False, *learned[1:]])


def _preferences(
    rows: list[Row], sieve: Sieve, settings: DataSettings, source: str
) -> Iterator[tuple[str, Preference]]:
    """Where each usable row is, and its prompt and answers."""
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        found = preference(row, settings, where)
        reason = found.unusable() if found else "empty"
        if found and not reason:
            yield where, found
        else:
            sieve.skipped[str(reason)] += 1


def _judged(
    rows: list[Row], tokenizer: Any, sieve: Sieve, settings: DataSettings, source: str
) -> list[tuple[Text, bool]]:
    """Usable answers and whether they are desirable; preferences are taken apart."""
    if is_preference(rows, settings) and settings.label_column not in columns_of(rows):
        pairs = comparisons_from_rows(rows, tokenizer, sieve, settings, source)
        return [x for pair in pairs for x in ((pair.chosen, True), (pair.rejected, False))]
    column = settings.prompt_column or "prompt"
    require_column(rows, column, source, "--data.prompt-column")
    require_column(rows, settings.completion_column, source, "--data.completion-column")
    require_column(rows, settings.label_column, source, "--data.label-column")
    good = _desirable([row.get(settings.label_column) for row in rows], source)
    found = []
    for number, row in enumerate(rows, start=1):
        where, answer = f"{source}, row {number}", row.get(settings.completion_column)
        if not row.get(column) or is_empty(answer) or row.get(settings.label_column) is None:
            sieve.skipped["empty"] += 1
            continue
        text = fitting(whole_text(tokenizer, row[column], answer, where), sieve, where, answer)
        if text is not None:
            found.append((text, row[settings.label_column] in good))
    return sieve.some(found, len(rows), source)


def _desirable(labels: list[Any], source: str) -> set[float]:
    """Which labels mean desirable: True, 1, or the higher one of two numbers."""
    numbers = [isinstance(x, (int, float)) and math.isfinite(x) for x in labels if x is not None]
    known = {x for x in labels if x is not None} if all(numbers) else set()
    if not all(numbers) or len(known) > 2 or (len(known) == 1 and known - {0, 1}):
        shown = ", ".join(dict.fromkeys(map(repr, labels[:5])))
        raise UserError(
            f"data.label_column: {source} has the labels {shown}; expected true and false, or two "
            "numbers of which the higher one marks desirable answers."
        )
    return {max(known)} - {0} if len(known) == 1 else {max(known, default=1)}
