"""What DPO and KTO learn from: pairs of answers, or completions that are each desirable or not."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from lmpg.language.data.chat import chat_options, text_or_messages
from lmpg.language.data.chats.wanted import as_chat
from lmpg.language.data.examples import (
    Parts,
    RowFilter,
    Split,
    columns_of,
    load_split,
    number,
    require_column,
)
from lmpg.language.data.order import random_numbers
from lmpg.language.data.preference_rows import (
    is_empty,
    is_preference,
    require_preference_columns,
    usable_preferences,
)
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.storage.examples_store import Lists, Stored
from lmpg.language.data.storage.row_store import Row, Rows, as_rows
from lmpg.language.data.texts import Text, fitted_text, text_of, whole_text
from lmpg.language.data.tokenizing import bos_ids, cut_left, shared_length
from lmpg.runtime.progress import with_progress
from lmpg.settings.section import UserError


@dataclass(frozen=True)
class PreferencePair:
    """A preferred and a rejected answer to one prompt, with which the ids of both texts begin.

    Loss masks cover the answers. ref_logprobs: log π_ref of both answers, where it is known.
    """

    plural: ClassVar[str] = "pairs"
    chosen: Text
    rejected: Text
    ref_logprobs: tuple[float, float] = (0.0, 0.0)

    @property
    def texts(self) -> tuple[Text, Text]:
        """The texts that `ref_logprobs` is of."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class LabelledCompletion:
    """A prompt with a completion that is desirable or not.

    mismatched: the same prompt with the completion of another one, from which KTO measures how far
    the policy has moved. ref_logprobs: log π_ref of both, where it is known.
    """

    plural: ClassVar[str] = "answers"
    text: Text
    mismatched: Text
    desirable: bool
    ref_logprobs: tuple[float, float] = (0.0, 0.0)

    @property
    def texts(self) -> tuple[Text, Text]:
        """The texts that `ref_logprobs` is of."""
        return self.text, self.mismatched


def load_preference_pairs(
    settings: DataSettings, tokenizer: Any, max_tokens: int, parts: Parts = ()
) -> Split[PreferencePair]:
    """Pairs of `data.path`, held-out ones from `data.eval_path` or else held back. parts: as of
    `load_split`."""
    row_filter = RowFilter(max_tokens, settings.overlong, bos_ids(tokenizer))
    return load_split(
        settings,
        row_filter,
        lambda rows, source: preference_pairs_from_rows(
            rows, tokenizer, row_filter, settings, source
        ),
        parts,
    )


def load_labelled_completions(
    settings: DataSettings, tokenizer: Any, max_tokens: int, parts: Parts = ()
) -> Split[LabelledCompletion]:
    """Completions of `data.path`, held-out ones from `data.eval_path` or else held back. parts: as
    of `load_split`."""
    row_filter = RowFilter(max_tokens, settings.overlong, bos_ids(tokenizer))
    split = load_split(
        settings,
        row_filter,
        lambda rows, source: _labelled(rows, tokenizer, row_filter, settings, source),
        parts,
    )
    train, held_out = (
        with_mismatched(part, max_tokens, row_filter.bos_ids)
        for part in (split.train, split.held_out)
    )
    return Split(train, held_out, split.skipped, split.num_cut)


def preference_pairs_from_rows(
    rows: Iterable[Row],
    tokenizer: Any,
    row_filter: RowFilter,
    settings: DataSettings | None = None,
    source: str = "rows",
) -> Stored[PreferencePair]:
    """The pairs of usable rows; without settings the rows have the default columns."""
    settings, rows = settings or DataSettings(), as_rows(rows)
    require_preference_columns(rows, settings, source)
    store = Lists("ibib")
    for _, where, each in usable_preferences(rows, row_filter, settings, source):
        chosen, rejected = (
            whole_text(tokenizer, each.prompt, answer, where, each.options)
            for answer in (each.chosen, each.rejected)
        )
        # shorter than the prompt where a token holds its end and the beginning of an answer
        heads = [text.ids[: text.prompt_length] for text in (chosen, rejected)]
        prompt = chosen.ids[: shared_length(*heads)]
        if not prompt:  # no prompt and no BOS before the answers
            row_filter.skipped["without a common prompt"] += 1
            continue
        longest = max(len(text.ids) for text in (chosen, rejected)) - len(prompt)
        before = row_filter.fitted_prompt(prompt, longest, where)
        if before is not None:
            better, worse = (_after(before, text, len(prompt)) for text in (chosen, rejected))
            store.append(better.ids, better.loss_mask, worse.ids, worse.loss_mask)

    def make(i: int) -> PreferencePair:
        return PreferencePair(text_of(store, i), text_of(store, i, 2))

    return row_filter.not_empty(Stored(make, np.arange(len(store))), len(rows), source)


def labelled_completions_from_rows(
    rows: Iterable[Row], tokenizer: Any, row_filter: RowFilter
) -> Sequence[LabelledCompletion]:
    """The labelled completions of rows in memory, which have the default columns."""
    labelled = _labelled(as_rows(rows), tokenizer, row_filter, DataSettings(), "rows")
    return with_mismatched(labelled, row_filter.max_tokens, row_filter.bos_ids)


def with_mismatched(
    labelled: Sequence[tuple[Text, bool]], max_tokens: int, bos_ids: list[int]
) -> Sequence[LabelledCompletion]:
    """Each (text, desirable) with its prompt before the completion of another prompt: that of its
    neighbour in a fixed shuffle, or of the next one there whose prompt differs."""
    order = random_numbers("mismatched", len(labelled)).permutation(len(labelled)).tolist()

    @lru_cache(maxsize=128)
    def prompt(i: int) -> list[int]:
        text = labelled[i][0]
        return text.ids[: text.prompt_length]

    other_of = array("q", bytes(8 * len(order)))
    for place, i in enumerate(order):
        others = (order[(place + k) % len(order)] for k in range(1, min(len(order), 100)))
        other_of[i] = next((j for j in others if prompt(j) != prompt(i)), order[place - 1])

    def make(i: int) -> LabelledCompletion:
        (text, desirable), other = labelled[i], labelled[other_of[i]][0]
        room = max_tokens - (len(other.ids) - other.prompt_length)
        before = cut_left(text.ids[: text.prompt_length], max(room, 1), bos_ids)
        return LabelledCompletion(text, _after(before, other, other.prompt_length), desirable)

    return Stored(make, np.arange(len(labelled)))


def _after(prompt: list[int], text: Text, start: int) -> Text:
    """What `text` has from token `start` on, after that prompt; all up to the answer is part of
    it."""
    answer = [True] * (text.prompt_length - start) + text.loss_mask[text.prompt_length :]
    mask = [False] * len(prompt) + answer
    return Text(prompt + text.ids[start:], [False, *mask[1:]])


def _labelled(
    rows: Rows, tokenizer: Any, row_filter: RowFilter, settings: DataSettings, source: str
) -> Stored[tuple[Text, bool]]:
    """Usable texts and whether they are desirable; a preference gives one of each kind."""
    if is_preference(rows, settings) and settings.label_column not in columns_of(rows):
        pairs = preference_pairs_from_rows(rows, tokenizer, row_filter, settings, source)

        def side(i: int) -> tuple[Text, bool]:
            pair = pairs[i // 2]
            return (pair.rejected, False) if i % 2 else (pair.chosen, True)

        return Stored(side, np.arange(2 * len(pairs)))
    column = settings.prompt_column or "prompt"
    require_column(rows, column, source, "--data.prompt-column")
    require_column(rows, settings.completion_column, source, "--data.completion-column")
    require_column(rows, settings.label_column, source, "--data.label-column")
    labels = [number(row.get(settings.label_column)) for row in rows]
    good = _desirable(labels, source)
    store, desirable = Lists("ib"), array("b")
    said = with_progress(rows, f"rows of {source} tokenised", len(rows))
    for i, row in enumerate(said):
        where = f"{source}, row {i + 1}"
        prompt, answer = (
            text_or_messages(row.get(name), f"{where}, column {name!r}")
            for name in (column, settings.completion_column)
        )
        if not prompt or is_empty(answer) or labels[i] is None:
            row_filter.skipped["empty"] += 1
            continue
        prompt = as_chat(prompt, settings)
        options = chat_options(row, where) if list in map(type, (prompt, answer)) else {}
        whole = whole_text(tokenizer, prompt, answer, where, options)
        text = fitted_text(whole, row_filter, where, answer)
        if text is not None:
            store.append(text.ids, text.loss_mask)
            desirable.append(labels[i] in good)
    made: Stored[tuple[Text, bool]] = Stored(
        lambda i: (text_of(store, i), bool(desirable[i])), np.arange(len(store))
    )
    return row_filter.not_empty(made, len(rows), source)


def _desirable(labels: list[Any], source: str) -> set[float]:
    """Which labels mean desirable: True, 1, or the higher one of two numbers."""
    expected = "expected true and false, or two numbers of which the higher one marks desirable"
    for row, label in enumerate(labels, start=1):
        if label is not None and not (isinstance(label, (int, float)) and math.isfinite(label)):
            raise UserError(
                f"data.label_column: {source}, row {row} has the label {label!r}; {expected} "
                "answers."
            )
    known = {x for x in labels if x is not None}
    if len(known) > 2 or (len(known) == 1 and known - {0, 1}):
        shown = ", ".join(dict.fromkeys(map(repr, labels[:5])))
        raise UserError(f"data.label_column: {source} has the labels {shown}; {expected} answers.")
    return {max(known)} - {0} if len(known) == 1 else {max(known, default=1)}
