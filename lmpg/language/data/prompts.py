"""Prompts for training and for evaluation, with the columns that rewards may ask for."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from lmpg.language.data.chat import ChatOptions, Messages, chat_options, text_or_messages
from lmpg.language.data.chats.wanted import as_chat, with_template_kwargs
from lmpg.language.data.examples import (
    Parts,
    RowFilter,
    Split,
    columns_of,
    load_split,
    reasons,
    require_column,
)
from lmpg.language.data.preference_rows import with_prompt_column
from lmpg.language.data.rows import read_rows
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.storage.examples_store import Lists, Stored
from lmpg.language.data.storage.row_store import TOGETHER, Row, Rows, as_rows, changed
from lmpg.language.data.tokenizing import bos_ids, many_prompt_ids, prompt_ids
from lmpg.runtime.progress import with_progress
from lmpg.settings.said_once import say_once
from lmpg.settings.section import UserError, beginning_with


@dataclass(frozen=True)
class Prompt:
    """One prompt: as the user wrote it, as ids, and its row's columns for the rewards."""

    plural: ClassVar[str] = "prompts"
    prompt: str | Messages
    ids: list[int]
    columns: dict[str, Any] = field(default_factory=dict)


EvalMetric = Callable[[list[Prompt], list[str]], dict[str, float]]
"""(prompts, completions) → metrics that training never sees, such as a gold scorer's."""


def common_columns(prompts: Split[Prompt]) -> list[str]:
    """Names of the columns that rewards may ask for: those that both parts have."""
    train, held_out = (_columns(part) for part in (prompts.train, prompts.held_out))
    return [name for name in train if name in held_out]


def _columns(prompts: Sequence[Prompt]) -> list[str]:
    alike = isinstance(prompts, Stored)  # all have the columns of their data set
    return columns_of(prompt.columns for prompt in (prompts[:1] if alike else prompts))


def lengths_of(prompts: Sequence[Prompt]) -> np.ndarray:
    """Tokens of each prompt, int64 [len]; stored ones are not made for it."""
    if isinstance(prompts, Stored) and prompts.store is not None:
        return prompts.store.lengths()[prompts.order]
    return np.array([len(prompt.ids) for prompt in prompts], np.int64)


def shortest_and_longest(prompts: Sequence[Prompt], count: int) -> Sequence[Prompt]:
    """`count` prompts of many, half of them the shortest."""
    if not isinstance(prompts, Stored) or len(prompts) <= count:
        return prompts
    order = np.argsort(lengths_of(prompts), kind="stable")
    return prompts.take([*order[: count // 2], *order[-count // 2 :]])


def load_prompts(
    settings: DataSettings,
    tokenizer: Any,
    max_prompt_tokens: int,
    *,
    may_lack_prompts: bool = False,
    parts: Parts = (),
) -> Split[Prompt]:
    """Prompts of `data.path`, held-out ones from `data.eval_path` or else held back.

    may_lack_prompts: whether rows may do without a prompt, as environments begin with them; then
    they are empty. parts: as of `load_split`.
    """
    row_filter = _prompt_filter(tokenizer, max_prompt_tokens, settings.overlong)
    read = partial(_of_data, settings, tokenizer, row_filter, may_lack_prompts=may_lack_prompts)
    return load_split(settings, row_filter, read, parts)


def columns_for_rewards(settings: DataSettings, parts: Parts, may_lack_prompts: bool) -> list[str]:
    """Names of the columns that prompts of these rows will have in common; UserError where one that
    the settings name is missing."""
    first, *others = (_with_columns(settings, *part, may_lack_prompts)[0].columns for part in parts)
    return [name for name in first if all(name in columns for columns in others)]


def load_all_prompts(
    settings: DataSettings,
    tokenizer: Any,
    max_prompt_tokens: int,
    *,
    may_lack_prompts: bool = False,
) -> Stored[Prompt]:
    """Every prompt of `data.path`, where none is trained on; says which rows are left out.

    may_lack_prompts: as of `load_prompts`.
    """
    if settings.path is None:
        raise UserError("data.path is missing: give a Hub name or a local file with --data.path.")
    row_filter = _prompt_filter(tokenizer, max_prompt_tokens, settings.overlong)
    rows = read_rows(settings.path, settings.split, revision=settings.revision)
    rows = with_template_kwargs(rows, settings)
    parts = settings, tokenizer, row_filter, rows, settings.path
    prompts = _of_data(*parts, may_lack_prompts=may_lack_prompts)
    if row_filter.skipped:
        say_once(f"data: of {settings.path} {reasons(row_filter.skipped)}")
    return prompts


def _of_data(
    settings: DataSettings,
    tokenizer: Any,
    row_filter: RowFilter,
    rows: Rows,
    source: str,
    *,
    may_lack_prompts: bool,
) -> Stored[Prompt]:
    rows, column = _with_columns(settings, rows, source, may_lack_prompts)
    if column is None:
        return _without_prompts(rows)
    return _read(rows, tokenizer, row_filter, column, source, settings)


def _with_columns(
    settings: DataSettings, rows: Rows, source: str, may_lack_prompts: bool
) -> tuple[Rows, str | None]:
    """The rows with all their columns, and which of them holds the prompts; None where they may
    lack them and do."""
    column = settings.prompt_column or "prompt"
    rows = with_prompt_column(rows, settings, source)
    rows = _with_answers(rows, settings.answer_column, source)
    if may_lack_prompts and settings.prompt_column is None and column not in rows.columns:
        return rows, None
    require_column(rows, column, source, "--data.prompt-column")
    return rows, column


def prompts_from_rows(
    rows: Iterable[Row],
    tokenizer: Any,
    max_prompt_tokens: int,
    *,
    column: str = "prompt",
    overlong: str = "error",
) -> Stored[Prompt]:
    """Prompts of rows that are already in memory, in their order."""
    row_filter = _prompt_filter(tokenizer, max_prompt_tokens, overlong)
    rows = as_rows(rows)
    require_column(rows, column, "rows", "--data.prompt-column")
    return _read(rows, tokenizer, row_filter, column, "rows", DataSettings())


def _prompt_filter(tokenizer: Any, max_prompt_tokens: int, overlong: str) -> RowFilter:
    """The filter of prompts; refuses a context that leaves no room for any."""
    if max_prompt_tokens < 1:
        raise UserError(
            "the model's context leaves no token for the prompt beside the response "
            f"(sampling.max_new_tokens is {1 - max_prompt_tokens} too large), expected at least 1: "
            "use a smaller --sampling.max-new-tokens."
        )
    return RowFilter(max_prompt_tokens, overlong, bos_ids(tokenizer), "prompt")


def _read(
    rows: Rows,
    tokenizer: Any,
    row_filter: RowFilter,
    column: str,
    source: str,
    settings: DataSettings,
) -> Stored[Prompt]:
    store, row_of = Lists(), array("q")

    def text(row: Row, i: int) -> str | Messages:
        prompt = text_or_messages(row.get(column), f"{source}, row {i + 1}, column {column!r}")
        return prompt if _is_blank(prompt) else as_chat(prompt, settings)

    def make(place: int) -> Prompt:
        i = row_of[place]
        row = rows[i]
        return Prompt(text(row, i), store.read(place), dict.fromkeys(rows.columns) | row)

    said = with_progress(enumerate(rows), f"rows of {source} tokenised", len(rows))
    while part := list(islice(said, TOGETHER)):
        kept = []
        for i, row in part:
            prompt = text(row, i)
            if _is_blank(prompt):
                row_filter.skipped["empty"] += 1
                continue
            where = f"{source}, row {i + 1}"
            options = chat_options(row, where) if isinstance(prompt, list) else {}
            kept.append((i, where, prompt, options))
        all_ids = _ids([each[1:] for each in kept], tokenizer)
        for (i, where, _, _), ids in zip(kept, all_ids):
            fitting = row_filter.fitted(ids, where)
            if fitting is not None:
                store.append(fitting)
                row_of.append(i)
    made = Stored(make, np.arange(len(store)), store)
    return row_filter.not_empty(made, len(rows), source)


def _without_prompts(rows: Rows) -> Stored[Prompt]:
    """The rows with empty prompts."""
    store = Lists()
    for _ in range(len(rows)):
        store.append([])

    def make(i: int) -> Prompt:
        return Prompt("", [], dict.fromkeys(rows.columns) | rows[i])

    return Stored(make, np.arange(len(store)), store)


def _is_blank(prompt: str | Messages | None) -> bool:
    return not prompt or (isinstance(prompt, str) and not prompt.strip())


def _with_answers(rows: Rows, column: str | None, source: str) -> Rows:
    """Rows in which `answer` is what stands in `column`."""
    if column is None:
        return rows
    require_column(rows, column, source, "--data.answer-column")
    return changed(rows, lambda row, _: {**row, "answer": row.get(column)}, "answer")


def _ids(prompts: list[tuple[str, str | Messages, ChatOptions]], tokenizer: Any) -> list[list[int]]:
    """Token ids of prompts, each given with where it is and the chat template's options."""
    texts = iter(many_prompt_ids(tokenizer, [p for _, p, _ in prompts if isinstance(p, str)]))
    found = []
    for where, prompt, options in prompts:
        with beginning_with(where):
            chat = isinstance(prompt, list)
            found.append(prompt_ids(tokenizer, prompt, options) if chat else next(texts))
    return found
