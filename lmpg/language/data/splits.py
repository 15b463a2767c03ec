"""Examples to train on and examples held out for evaluation, from one source or two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from lmpg.language.data.order import held_out_split, subset
from lmpg.language.data.row_filter import RowFilter, reasons
from lmpg.language.data.rows import Row, read_rows
from lmpg.language.data.settings import DataSettings
from lmpg.settings.section import UserError

E = TypeVar("E")


@dataclass(frozen=True)
class Split(Generic[E]):
    """Examples to train on, examples held out, and what became of the other rows.

    skipped: number of rows left out, by reason. num_cut: number of rows cut on the left.
    """

    train: list[E]
    held_out: list[E]
    skipped: dict[str, int] = field(default_factory=dict)
    num_cut: int = 0

    def line(self) -> str:
        """How many examples there are, and what was left out or cut, for the log."""
        first: Any = self.train[0]
        parts = [f"{len(self.train)} {first.plural} to train on, {len(self.held_out)} held out"]
        parts += [reasons(self.skipped)] if self.skipped else []
        parts += [f"{self.num_cut} cut on the left"] if self.num_cut else []
        return "; ".join(parts)


def load_split(
    settings: DataSettings, row_filter: RowFilter, read: Callable[[list[Row], str], list[E]]
) -> Split[E]:
    """Examples of `data.path`; `read(rows, source)` makes them of rows, through the filter.

    Held out are at most `num_eval` examples of `eval_path` or `eval_split`, else of `path`
    those that training then doesn't see. The choice doesn't depend on the run's seed.
    """
    if settings.path is None:
        raise UserError("data.path is missing: give a Hub name or a local file with --data.path.")
    train = read(read_rows(settings.path, settings.split), settings.path)
    if settings.eval_path is None and settings.eval_split is None:
        train, held_out = _held_back(train, settings)
        return Split(train, held_out, dict(row_filter.skipped), row_filter.num_cut)
    source, split = _held_out_source(settings)
    held_out = read(read_rows(source, split, "data.eval_path"), source)
    held_out = [held_out[i] for i in subset(len(held_out), settings.num_eval)]
    return Split(train, held_out, dict(row_filter.skipped), row_filter.num_cut)


def _held_out_source(settings: DataSettings) -> tuple[str, str]:
    source = settings.eval_path or str(settings.path)
    if settings.eval_path is None and Path(source).expanduser().is_file():
        raise UserError(
            f"data.eval_split: {settings.eval_split!r} names a split of data.path, but {source} "
            "is a single file, which has none. Give the other file with --data.eval-path."
        )
    return source, settings.eval_split or settings.split


def _held_back(examples: list, settings: DataSettings) -> tuple[list, list]:
    train, held_out = held_out_split(len(examples), settings.num_eval)
    if not held_out:
        raise UserError(
            f"data.path: {settings.path} has {len(examples)} usable rows, expected at least 5 "
            "to hold back a fifth for evaluation: give more rows, or --data.eval-path."
        )
    return [examples[i] for i in train], [examples[i] for i in held_out]
