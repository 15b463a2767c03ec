"""Pairs of a better and a worse text, for training reward models.

From rows with `chosen` and `rejected` (the prompt in a column of its own, or implicit: both
begin with it), or from labelled text, where any higher label beats any lower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lmpg.language.data.order import epoch_order, random_numbers
from lmpg.language.data.preference_rows import preference, require_preference_columns
from lmpg.language.data.row_filter import Sieve, size_line
from lmpg.language.data.rows import Row, columns_of, require_column
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.splits import load_split
from lmpg.language.data.tokenizing import scored_ids, start_ids
from lmpg.settings.section import UserError


@dataclass(frozen=True)
class Pair:
    """Ids of two texts, EOS included; the first is to score higher."""

    chosen_ids: list[int]
    rejected_ids: list[int]
    margin: float = 0.0
    """How much higher it is to score."""


@dataclass(frozen=True)
class LabelledText:
    """Ids of a text, EOS included; it beats every text with a lower label."""

    ids: list[int]
    label: float


@dataclass(frozen=True)
class PairSet:
    """Examples to train on, whose pairs may differ between epochs, and examples held out."""

    train: list[Pair] | list[LabelledText]
    held_out: list[Pair] | list[LabelledText]
    skipped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0

    def epoch(self, epoch: int, seed: int) -> list[Pair]:
        """The training pairs of one epoch, shuffled; labelled texts meet new partners in each."""
        pairs = as_pairs(self.train, epoch, seed)
        return [pairs[i] for i in epoch_order(len(pairs), epoch, seed)]

    def line(self) -> str:
        """How many there are, and what was left out, for the log."""
        what = "pairs" if self.train and isinstance(self.train[0], Pair) else "labelled texts"
        return size_line(what, self.train, self.held_out, self.skipped, self.truncated)


def load_pairs(settings: DataSettings, tokenizer: Any, max_tokens: int) -> PairSet:
    """Pairs of `data.path`, held-out ones from `data.eval_path` or else held back."""
    sieve = Sieve(max_tokens, settings.overlong, start_ids(tokenizer), "text")
    train, held_out = load_split(
        settings,
        lambda rows, source: examples_from_rows(rows, tokenizer, sieve, settings, source),
    )
    return PairSet(train, held_out, dict(sieve.skipped), sieve.truncated)


def pairs_from_rows(rows: list[Row], tokenizer: Any, max_tokens: int) -> list[Pair]:
    """Pairs of rows in memory, which have the default columns."""
    sieve = Sieve(max_tokens, "error", start_ids(tokenizer), "text")
    return as_pairs(examples_from_rows(rows, tokenizer, sieve, DataSettings(), "rows"), 0, 0)


def examples_from_rows(
    rows: list[Row], tokenizer: Any, sieve: Sieve, settings: DataSettings, source: str
) -> list[Pair] | list[LabelledText]:
    """Usable rows as pairs or labelled texts, whichever the columns say."""
    columns = columns_of(rows)
    preference = settings.chosen_column in columns or settings.rejected_column in columns
    if not preference and settings.label_column in columns:
        return _labelled_texts(rows, tokenizer, sieve, settings, source)
    if not preference:
        raise UserError(
            f"{source} has the columns {', '.join(columns)}; expected {settings.chosen_column!r} "
            f"and {settings.rejected_column!r}, or 'text' and {settings.label_column!r}. Other "
            "names are set with --data.chosen-column, --data.rejected-column, "
            "--data.prompt-column and --data.label-column."
        )
    require_preference_columns(rows, settings, source)
    return _preferences(rows, tokenizer, sieve, settings, source)


def as_pairs(examples: list[Pair] | list[LabelledText], epoch: int, seed: int) -> list[Pair]:
    """Pairs of one epoch; every labelled text is in at least one of them."""
    if examples and isinstance(examples[0], Pair):
        return list(examples)  # type: ignore[arg-type]
    texts: list[LabelledText] = examples  # type: ignore[assignment]
    matches = match_labels([text.label for text in texts], epoch, seed)
    return [Pair(texts[high].ids, texts[low].ids) for high, low in matches]


def match_labels(labels: list[float], epoch: int, seed: int) -> list[tuple[int, int]]:
    """Indices (higher, lower) of texts with different labels, drawn anew in each epoch.

    Neighbours in a shuffle are matched, those with equal labels are shuffled again, and what
    remains of the largest class takes random partners: each of its texts is used once if it
    has half of all texts or more.
    """
    if len(set(labels)) < 2:
        found = f"all are {labels[0]:g}" if labels else "there are none"
        raise UserError(f"the labels must hold two different values at least, but {found}.")
    draw = random_numbers("match", epoch, seed)
    matches, left = [], list(range(len(labels)))
    while len({labels[i] for i in left}) > 1:
        left = [left[i] for i in draw.permutation(len(left))]
        pairs = list(zip(left[::2], left[1::2]))
        odd = left[len(pairs) * 2 :]
        matches += [pair for pair in pairs if labels[pair[0]] != labels[pair[1]]]
        left = [i for pair in pairs if labels[pair[0]] == labels[pair[1]] for i in pair] + odd
    others = [i for i in range(len(labels)) if left and labels[i] != labels[left[0]]]
    matches += [(i, others[draw.integers(len(others))]) for i in left]
    return [(a, b) if labels[a] > labels[b] else (b, a) for a, b in matches]


def _preferences(
    rows: list[Row], tokenizer: Any, sieve: Sieve, settings: DataSettings, source: str
) -> list[Pair]:
    if settings.margin_column != "margin":
        require_column(rows, settings.margin_column, source, "--data.margin-column")
    pairs = []
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        found = preference(row, settings, where)
        reason = found.unusable() if found else "empty"
        if found is None or reason:
            sieve.skipped[str(reason)] += 1
            continue
        margin = row.get(settings.margin_column)
        margin = 0.0 if margin is None else margin
        _check_number(margin, f"{where}, column {settings.margin_column!r}", "the margin")
        better = sieve.fit(scored_ids(tokenizer, found.prompt, found.chosen), where)
        worse = better and sieve.fit(scored_ids(tokenizer, found.prompt, found.rejected), where)
        if better and worse:
            pairs.append(Pair(better, worse, float(margin)))
    return sieve.some(pairs, len(rows), source)


def _labelled_texts(
    rows: list[Row], tokenizer: Any, sieve: Sieve, settings: DataSettings, source: str
) -> list[LabelledText]:
    column = settings.prompt_column or "text"
    require_column(rows, column, source, "--data.prompt-column")
    texts = []
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        text, label = row.get(column), row.get(settings.label_column)
        if not text or label is None:
            sieve.skipped["empty"] += 1
            continue
        where_label = f"{where}, column {settings.label_column!r}"
        _check_number(label, where_label, "any higher label beats any lower")
        ids = sieve.fit(scored_ids(tokenizer, "" if isinstance(text, str) else [], text), where)
        if ids is not None:
            texts.append(LabelledText(ids, float(label)))
    return sieve.some(texts, len(rows), source)


def _check_number(value: Any, where: str, what: str) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where} holds {value!r}, expected a finite number: {what}.")
