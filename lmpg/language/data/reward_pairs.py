"""Pairs of a better and a worse text, from which reward models learn.

They come from rows with `chosen` and `rejected` (the prompt has a column of its own, or both begin
with it), or from labelled texts, of which a higher label beats any lower one.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lmpg.language.data.chat import chat_options, text_or_messages
from lmpg.language.data.chats.wanted import as_chat, refuse_chat
from lmpg.language.data.examples import (
    Parts,
    RowFilter,
    Split,
    columns_of,
    load_split,
    number,
    require_column,
)
from lmpg.language.data.order import epoch_order, random_numbers
from lmpg.language.data.preference_rows import require_preference_columns, usable_preferences
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.storage.examples_store import Lists, Stored, taken
from lmpg.language.data.storage.row_store import Row, Rows, as_rows
from lmpg.language.data.tokenizing import bos_ids, scored_ids
from lmpg.runtime.progress import with_progress
from lmpg.settings.section import UserError, beginning_with


@dataclass(frozen=True)
class RewardPair:
    """Ids of two texts, EOS included; the chosen one is to score higher.

    margin: by how much, beside the margin that the settings ask for.
    """

    plural: ClassVar[str] = "pairs"
    chosen_ids: list[int]
    rejected_ids: list[int]
    margin: float = 0.0


@dataclass(frozen=True)
class LabelledText:
    """Ids of a text, EOS included; it beats every text with a lower label."""

    plural: ClassVar[str] = "labelled texts"
    ids: list[int]
    label: float


Examples = Sequence[RewardPair] | Sequence[LabelledText]


def load_reward_pairs(
    settings: DataSettings, tokenizer: Any, max_tokens: int, parts: Parts = ()
) -> Split[Any]:
    """Pairs, or labelled texts, of `data.path`, held-out ones from `data.eval_path` or else held
    back. parts: as of `load_split`."""
    row_filter = RowFilter(max_tokens, settings.overlong, bos_ids(tokenizer))

    def read(rows: Rows, source: str) -> Sequence[Any]:
        return _examples(rows, tokenizer, row_filter, settings, source)

    return load_split(settings, row_filter, read, parts)


def reward_pairs_from_rows(
    rows: Iterable[Row], tokenizer: Any, max_tokens: int
) -> Sequence[RewardPair]:
    """Pairs of rows in memory, which have the default columns."""
    row_filter = RowFilter(max_tokens, "error", bos_ids(tokenizer))
    return as_pairs(_examples(as_rows(rows), tokenizer, row_filter, DataSettings(), "rows"), 0, 0)


def _examples(
    rows: Rows, tokenizer: Any, row_filter: RowFilter, settings: DataSettings, source: str
) -> Examples:
    """Usable rows as pairs or labelled texts, whichever the columns say."""
    columns = columns_of(rows)
    compared = settings.chosen_column in columns or settings.rejected_column in columns
    if not compared and settings.label_column in columns:
        return _labelled_texts(rows, tokenizer, row_filter, settings, source)
    if not compared:
        raise UserError(
            f"{source} has the columns {', '.join(columns)}; expected {settings.chosen_column!r} "
            f"and {settings.rejected_column!r}, or 'text' and {settings.label_column!r}. Other "
            "names are set with --data.chosen-column, --data.rejected-column, "
            "--data.prompt-column and --data.label-column."
        )
    require_preference_columns(rows, settings, source)
    return _pairs(rows, tokenizer, row_filter, settings, source)


def pairs_of_epoch(examples: Examples, epoch: int, seed: int) -> Sequence[RewardPair]:
    """The pairs of one epoch, shuffled; labelled texts meet new partners in each."""
    pairs = as_pairs(examples, epoch, seed)
    return taken(pairs, epoch_order(len(pairs), epoch, seed))


def as_pairs(examples: Examples, epoch: int, seed: int) -> Sequence[RewardPair]:
    """Pairs of one epoch; every labelled text is in at least one of them."""
    if examples and isinstance(examples[0], RewardPair):
        return examples  # type: ignore[return-value]
    texts: Sequence[LabelledText] = examples  # type: ignore[assignment]
    matches = match_labels([text.label for text in texts], epoch, seed)

    def make(i: int) -> RewardPair:
        high, low = matches[i]
        return RewardPair(texts[high].ids, texts[low].ids)

    return Stored(make, np.arange(len(matches)))


def match_labels(labels: list[float], epoch: int, seed: int) -> list[tuple[int, int]]:
    """Indices (higher, lower) of texts with different labels, drawn anew in each epoch.

    Matches neighbours in a shuffle, and shuffles those with equal labels again. What remains of the
    largest class gets random partners; if it has half of all texts or more, each of its texts is
    used once.
    """
    if len(set(labels)) < 2:
        found = f"all labels are {labels[0]:g}" if labels else "there are no labels"
        raise UserError(
            f"data.label_column: {found}, expected two different values at least, as a higher one "
            "beats a lower one: give texts with other labels, or name another column."
        )
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


def _pairs(
    rows: Rows, tokenizer: Any, row_filter: RowFilter, settings: DataSettings, source: str
) -> Stored[RewardPair]:
    if settings.margin_column != "margin":
        require_column(rows, settings.margin_column, source, "--data.margin-column")
    store, margins = Lists("ii"), array("d")
    for row, where, found in usable_preferences(rows, row_filter, settings, source):
        margin = row.get(settings.margin_column)
        margin = 0.0 if margin is None else margin
        margin = _finite(margin, f"{where}, column {settings.margin_column!r}", "the margin")
        with beginning_with(where):
            chosen = scored_ids(tokenizer, found.prompt, found.chosen, found.options)
            rejected = scored_ids(tokenizer, found.prompt, found.rejected, found.options)
        chosen_ids = row_filter.fitted(chosen, where)
        rejected_ids = chosen_ids and row_filter.fitted(rejected, where)
        if chosen_ids and rejected_ids:
            store.append(chosen_ids, rejected_ids)
            margins.append(margin)

    def make(i: int) -> RewardPair:
        return RewardPair(store.read(i), store.read(i, 1), margins[i])

    return row_filter.not_empty(Stored(make, np.arange(len(margins))), len(rows), source)


def _labelled_texts(
    rows: Rows, tokenizer: Any, row_filter: RowFilter, settings: DataSettings, source: str
) -> Stored[LabelledText]:
    column = settings.prompt_column or "text"
    require_column(rows, column, source, "--data.prompt-column")
    store, labels = Lists(), array("d")
    said = with_progress(rows, f"rows of {source} tokenised", len(rows))
    for n, row in enumerate(said, start=1):
        where = f"{source}, row {n}"
        text = text_or_messages(row.get(column), f"{where}, column {column!r}")
        label = row.get(settings.label_column)
        if not text or label is None:
            row_filter.skipped["empty"] += 1
            continue
        where_label = f"{where}, column {settings.label_column!r}"
        label = _finite(label, where_label, "any higher label beats any lower")
        if isinstance(text, str):
            refuse_chat(settings, where)
        text = as_chat(text, settings)
        options = chat_options(row, where) if isinstance(text, list) else {}
        with beginning_with(where):
            whole = scored_ids(tokenizer, [] if isinstance(text, list) else "", text, options)
        ids = row_filter.fitted(whole, where)
        if ids is not None:
            store.append(ids)
            labels.append(label)
    made = Stored(lambda i: LabelledText(store.read(i), labels[i]), np.arange(len(labels)))
    return row_filter.not_empty(made, len(rows), source)


def _finite(value: Any, where: str, what: str) -> float:
    found = number(value)
    if not isinstance(found, (int, float)) or not math.isfinite(found):
        raise UserError(f"{where} holds {value!r}, expected a finite number: {what}.")
    return float(found)
