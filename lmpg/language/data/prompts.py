"""Prompts for training and for evaluation, with the columns that rewards may ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lmpg.language.data.chat import ChatOptions, Messages, chat_options, text_or_messages
from lmpg.language.data.chats.wanted import as_chat
from lmpg.language.data.examples import RowFilter, Split, columns_of, load_split, require_column
from lmpg.language.data.preference_rows import with_prompt_column
from lmpg.language.data.rows import Row
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.tokenizing import bos_ids, many_prompt_ids, prompt_ids
from lmpg.settings.section import UserError


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
    held_out = columns_of(prompt.columns for prompt in prompts.held_out)
    return [name for name in columns_of(p.columns for p in prompts.train) if name in held_out]


def load_prompts(settings: DataSettings, tokenizer: Any, max_prompt_tokens: int) -> Split[Prompt]:
    """Prompts of `data.path`, held-out ones from `data.eval_path` or else held back."""
    row_filter = _prompt_filter(tokenizer, max_prompt_tokens, settings.overlong)
    column = settings.prompt_column or "prompt"

    def read(rows: list[Row], source: str) -> list[Prompt]:
        rows = with_prompt_column(rows, settings, source)
        rows = _with_answers(rows, settings.answer_column, source)
        return _read(rows, tokenizer, row_filter, column, source, settings)

    return load_split(settings, row_filter, read)


def prompts_from_rows(
    rows: list[Row],
    tokenizer: Any,
    max_prompt_tokens: int,
    *,
    column: str = "prompt",
    overlong: str = "error",
) -> list[Prompt]:
    """Prompts of rows that are already in memory, in their order."""
    row_filter = _prompt_filter(tokenizer, max_prompt_tokens, overlong)
    return _read(rows, tokenizer, row_filter, column, "rows", DataSettings())


def _prompt_filter(tokenizer: Any, max_prompt_tokens: int, overlong: str) -> RowFilter:
    """The filter of prompts; refuses a context that leaves no room for any."""
    if max_prompt_tokens < 1:
        raise UserError(
            f"the model's context leaves {max_prompt_tokens} tokens for the prompt, expected at "
            "least 1: use a smaller --sampling.max-new-tokens."
        )
    return RowFilter(max_prompt_tokens, overlong, bos_ids(tokenizer), "prompt")


def _read(
    rows: list[Row],
    tokenizer: Any,
    row_filter: RowFilter,
    column: str,
    source: str,
    settings: DataSettings,
) -> list[Prompt]:
    require_column(rows, column, source, "--data.prompt-column")
    kept = []
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        prompt = text_or_messages(row.get(column), f"{where}, column {column!r}")
        if prompt and (isinstance(prompt, list) or prompt.strip()):
            prompt = as_chat(prompt, settings)
            options = chat_options(row, where) if isinstance(prompt, list) else {}
            kept.append((where, row, prompt, options))
        else:
            row_filter.skipped["empty"] += 1
    prompts, names = [], columns_of(rows)
    all_ids = _ids([(prompt, options) for _, _, prompt, options in kept], tokenizer)
    for (where, row, prompt, _), ids in zip(kept, all_ids):
        fitting = row_filter.fitted(ids, where)
        if fitting is not None:
            prompts.append(Prompt(prompt, fitting, dict.fromkeys(names) | row))
    return row_filter.not_empty(prompts, len(rows), source)


def _with_answers(rows: list[Row], column: str | None, source: str) -> list[Row]:
    """Rows in which `answer` is what stands in `column`."""
    if column is None:
        return rows
    require_column(rows, column, source, "--data.answer-column")
    return [{**row, "answer": row.get(column)} for row in rows]


def _ids(prompts: list[tuple[str | Messages, ChatOptions]], tokenizer: Any) -> list[list[int]]:
    texts = iter(many_prompt_ids(tokenizer, [p for p, _ in prompts if isinstance(p, str)]))
    return [next(texts) if isinstance(p, str) else prompt_ids(tokenizer, p, x) for p, x in prompts]
