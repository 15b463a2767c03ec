"""Training examples and held-out ones, from one source or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lmpg.language.data.order import held_out_split, subset
from lmpg.language.data.rows import Row, read_rows
from lmpg.language.data.settings import DataSettings
from lmpg.settings.section import UserError


def load_split(settings: DataSettings, read: Callable[[list[Row], str], list]) -> tuple[list, list]:
    """Examples (train, held out) of `settings`; `read(rows, source)` makes examples of rows.

    Held out are at most `num_eval` examples of `eval_path` or `eval_split`, else of `path`
    those that training then doesn't see. The choice doesn't depend on the run's seed.
    """
    if settings.path is None:
        raise UserError("data.path is missing: give a Hub name or a local file with --data.path.")
    train = read(read_rows(settings.path, settings.split), settings.path)
    if settings.eval_path is None and settings.eval_split is None:
        return _held_back(train, settings)
    source, split = _held_out_source(settings)
    held_out = read(read_rows(source, split, "data.eval_path"), source)
    return train, [held_out[i] for i in subset(len(held_out), settings.num_eval)]


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
