"""From rows to examples: which of them can be used, and which are held out for evaluation."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from lmpg.language.data.chats.wanted import with_template_kwargs
from lmpg.language.data.order import held_out_split, subset
from lmpg.language.data.rows import read_rows
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.storage.examples_store import taken
from lmpg.language.data.storage.row_store import Row, Rows
from lmpg.language.data.tokenizing import cut_left
from lmpg.settings.section import UserError

E = TypeVar("E")
S = TypeVar("S", bound=Sequence)
Parts = Sequence[tuple[Rows, str]]
"""Rows and where they come from: of the whole data, or to train on and held out."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII)


def columns_of(rows: Rows | Iterable[Row]) -> list[str]:
    """Names of all columns, in the order in which they first appear."""
    if isinstance(rows, Rows):
        return rows.columns
    return list(dict.fromkeys(name for row in rows for name in row))


def require_column(rows: Rows | Sequence[Row], column: str, source: str, flag: str) -> None:
    """Raises if no row has `column`; the message lists those there are and the flag to use."""
    columns = columns_of(rows)
    if column in columns:
        return
    likely = ("prompt", "question", "instruction", "query", "text", "messages", "input")
    near = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
    near = near or [name for name in likely if name in columns] or columns[:1]
    suggestion = f" Use {flag} {near[0]} if that is the one." if near else ""
    raise UserError(
        f"data.{flag.removeprefix('--data.').replace('-', '_')}: {source} has no column "
        f"{column!r}; its columns are: {', '.join(columns) or 'none'}.{suggestion}"
    )


def number(value: Any) -> Any:
    """`value`, as a number or a truth value if it is the text of one, as tables of text have it."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text in ("true", "false"):
        return text == "true"
    return float(text) if _NUMBER.fullmatch(text) else value


class RowFilter:
    """Fits the rows of a data set into the model's context, and counts those that don't fit.

    max_tokens: room for a row. overlong: what becomes of longer ones, see `DataSettings.overlong`.
    bos_ids: stay in front of a row that is cut. what: what the room is for, in messages.
    skipped: number of rows left out, by reason (`empty`, `overlong`, ...).
    num_cut: number of rows cut on the left.
    """

    def __init__(self, max_tokens: int, overlong: str, bos_ids: list[int], what: str = "text"):
        self.max_tokens = max_tokens
        self.overlong = overlong
        self.bos_ids = bos_ids
        self.what = what
        self.skipped: Counter[str] = Counter()
        self.num_cut = 0

    def fitted(self, ids: list[int], where: str) -> list[int] | None:
        """`ids`, cut to `max_tokens` if need be, or None if the row is skipped."""
        if not ids:
            self.skipped["empty"] += 1
            return None
        if len(ids) <= self.max_tokens:
            return ids
        if self.overlong == "error":
            raise UserError(f"{where}: {self._too_long(len(ids))}")
        if self.overlong == "skip":
            self.skipped["overlong"] += 1
            return None
        self.num_cut += 1
        return cut_left(ids, self.max_tokens, self.bos_ids)

    def fitted_prompt(self, prompt: list[int], answer_length: int, where: str) -> list[int] | None:
        """The part of `prompt` that fits before an answer of so many tokens, which is never cut;
        None if the row is skipped."""
        if len(prompt) + answer_length <= self.max_tokens:
            return prompt
        room = self.max_tokens - answer_length
        if self.overlong == "truncate-left" and room <= len(self.bos_ids):
            self.skipped["overlong answer"] += 1
            return None
        if self.overlong == "truncate-left":
            self.num_cut += 1
            return cut_left(prompt, room, self.bos_ids)
        if self.overlong == "skip":
            self.skipped["overlong"] += 1
            return None
        raise UserError(f"{where}: {self._too_long(len(prompt) + answer_length)}")

    def not_empty(self, examples: S, num_rows: int, source: str) -> S:
        """`examples`; raises if there are none, saying what became of the rows."""
        if not examples:
            raise UserError(f"{source} has no usable row: of {num_rows}, {reasons(self.skipped)}.")
        return examples

    def _too_long(self, length: int) -> str:
        fix = "data.overlong is 'error': use --data.overlong skip or truncate-left"
        if self.what != "prompt":
            return (
                f"the {self.what} has {length} tokens, but the model's context holds "
                f"{self.max_tokens}. {fix}."
            )
        return (
            f"the prompt has {length} tokens, but only {self.max_tokens} fit into the model's "
            f"context beside the response. {fix}, or a smaller --sampling.max-new-tokens."
        )


def reasons(skipped: dict[str, int]) -> str:
    """Such as "2 empty, 1 overlong skipped"."""
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items()) + " skipped"


@dataclass(frozen=True)
class Split(Generic[E]):
    """Examples to train on, examples held out, and what became of the other rows.

    skipped: number of rows left out, by reason. num_cut: number of rows cut on the left.
    """

    train: Sequence[E]
    held_out: Sequence[E]
    skipped: dict[str, int] = field(default_factory=dict)
    num_cut: int = 0

    def line(self) -> str:
        """How many examples there are, and what was left out or cut, for the log."""
        first: Any = self.train[0]
        parts = [f"{len(self.train)} {first.plural} to train on, {len(self.held_out)} held out"]
        parts += [reasons(self.skipped)] if self.skipped else []
        parts += [f"{self.num_cut} cut on the left"] if self.num_cut else []
        return "; ".join(parts)


def data_rows(settings: DataSettings) -> Parts:
    """The rows of `data.path`, then those of `eval_path` or `eval_split` where one is given, each
    with where they come from; what is wrong with the files is told before models are loaded."""
    if settings.path is None:
        raise UserError("data.path is missing: give a Hub name or a local file with --data.path.")
    rows = read_rows(settings.path, settings.split, revision=settings.revision)
    found = [(with_template_kwargs(rows, settings), settings.path)]
    if settings.eval_path is not None or settings.eval_split is not None:
        source, split = _held_out_source(settings)
        revision = settings.revision if settings.eval_path is None else None
        rows = read_rows(source, split, "data.eval_path", revision)
        found.append((with_template_kwargs(rows, settings), source))
    return found


def load_split(
    settings: DataSettings,
    row_filter: RowFilter,
    read: Callable[[Rows, str], Sequence[E]],
    parts: Parts = (),
) -> Split[E]:
    """Examples of `data.path`; `read(rows, source)` makes them of rows, through the filter.

    Held out are at most `num_eval` examples of `eval_path` or `eval_split`, else of `path`
    those that training then doesn't see. The choice doesn't depend on the run's seed. parts: the
    `data_rows` of the settings, where they were read before.
    """
    train, *others = [read(*part) for part in parts or data_rows(settings)]
    if others:
        held_out = taken(others[0], subset(len(others[0]), settings.num_eval))
    else:
        train, held_out = _held_back(train, settings)
    return Split(train, held_out, dict(row_filter.skipped), row_filter.num_cut)


def _held_out_source(settings: DataSettings) -> tuple[str, str]:
    source = settings.eval_path or str(settings.path)
    if settings.eval_path is None and Path(source).expanduser().is_file():
        raise UserError(
            f"data.eval_split: {settings.eval_split!r} names a split of data.path, but {source} "
            "is a single file, which has none. Give the other file with --data.eval-path."
        )
    return source, settings.eval_split or settings.split


def _held_back(examples: Sequence[E], settings: DataSettings) -> tuple[Sequence[E], Sequence[E]]:
    train, held_out = held_out_split(len(examples), settings.num_eval)
    if not held_out:
        raise UserError(
            f"data.path: {settings.path} has {len(examples)} usable rows, expected at least 5 "
            "to hold back a fifth for evaluation: give more rows, or --data.eval-path."
        )
    return taken(examples, train), taken(examples, held_out)
