"""Data that Python gives as an object: written as a file of JSON lines, which is read like any."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lmpg.language.data.rows import of_datasets
from lmpg.settings.section import UserError

EXPECTED = (
    "expected a path, a Hub id, a datasets.Dataset, a pandas DataFrame, or a list of dicts with "
    "the columns as keys"
)


def writer_of(data: Any, key: str) -> tuple[str, Callable[[Path], object]]:
    """(name, writes the data to a path of that name): of a file, or for a DatasetDict of a folder
    with one for each split. UserError for data that are neither rows nor a table of them."""
    if isinstance(data, Mapping):  # datasets.DatasetDict
        splits = {str(name): _rows(split, f"{key}[{name!r}]") for name, split in data.items()}

        def write_all(folder: Path) -> None:
            folder.mkdir()
            for name, rows in splits.items():
                _write(rows, folder / f"{name}.jsonl", key)

        return "data", write_all
    rows = _rows(data, key)
    return "data.jsonl", lambda path: _write(rows, path, key)


def _rows(data: Any, key: str) -> Iterable[Mapping[str, Any]]:
    if hasattr(data, "features") and hasattr(data, "column_names"):
        if not hasattr(data, "__len__"):
            raise UserError(
                f"{key} is a {type(data).__name__}, which is read as it comes, expected data that "
                "can be read again: take some rows, Dataset.from_list(list(data.take(1000)))"
            )
        return of_datasets(data)
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        return data.astype(object).where(data.notna(), None).to_dict("records")
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise UserError(f"{key} is a {type(data).__name__}, {EXPECTED}")
    rows = list(data)
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(f"{key}[{i}] is a {type(row).__name__}, {EXPECTED}")
    return rows


def _write(rows: Iterable[Mapping[str, Any]], path: Path, key: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            try:
                file.write(_line(row) + "\n")
            except (TypeError, ValueError) as error:
                column = next(name for name, x in row.items() if not _fits(x))
                raise UserError(
                    f"{key}[{i}]: the column {column!r} holds {error}, expected text, numbers, "
                    "dates, and lists and dicts of these; convert it, or leave it out"
                ) from None


def _line(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False, default=_plain)
    try:
        text.encode()
    except UnicodeEncodeError:  # half an emoji
        return json.dumps(row, default=_plain)
    return text


def _fits(value: Any) -> bool:
    try:
        json.dumps(value, default=_plain)
    except (TypeError, ValueError):
        return False
    return True


def _plain(value: Any) -> Any:
    """What JSON doesn't know: arrays as lists, numpy's numbers as Python's, dates as ISO text."""
    for name in ("tolist", "isoformat"):
        if hasattr(value, name):
            return getattr(value, name)()
    raise TypeError(f"a {type(value).__name__}")
