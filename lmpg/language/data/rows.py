"""Reads a data set as rows (dicts), from local files, folders or the Hub, with readable errors."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmpg.language.data.reasoning import PREFIX, reasoning_rows
from lmpg.settings.section import UserError

Row = dict[str, Any]

_READERS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".txt": "text"}
_JSON = (".json", ".jsonl", ".ndjson")
_FORMATS = ".json, .jsonl, .csv, .tsv, .parquet, .arrow or .txt"


def read_rows(source: str, split: str, key: str = "data.path") -> list[Row]:
    """All rows of `source`: `reasoning_gym:TASK`, a local file or folder, else `NAME` or
    `NAME:CONFIG` on the Hub.

    key: the setting that `source` came from, for messages.
    """
    path = Path(source).expanduser()
    if source.startswith(PREFIX):
        rows = reasoning_rows(source, key)
    elif path.is_file():
        rows = _read_file(path, key)
    elif path.is_dir():
        rows = _read_folder(path, split, key)
    else:
        refuse_missing_file(source, key)
        rows = _read_hub(source, split, key)
    if not rows:
        raise UserError(f"{key}: {source} is empty: it has no rows. Expected at least one.")
    return rows


def _read_file(path: Path, key: str) -> list[Row]:
    suffix = path.suffix.lower()
    if suffix in _JSON:
        return list(_json_rows(path, key))
    if suffix in _READERS:
        extra = {"sep": "\t"} if suffix == ".tsv" else {}
        return _load(str(path), key, _READERS[suffix], data_files=str(path), split="train", **extra)
    raise UserError(f"{key}: {path} has the ending {suffix!r}, expected {_FORMATS}.")


def _json_rows(path: Path, key: str) -> Iterator[Row]:
    """Rows of an array of objects, or of one object per line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {path} is not UTF-8 text ({error.reason}).") from None
    if text.lstrip().startswith("["):
        yield from _json_array(path, text, key)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(_bad_line(path, number, line, error, key)) from None
        yield _checked(row, f"{path}, line {number}", key)


def _bad_line(path: Path, number: int, line: str, error: json.JSONDecodeError, key: str) -> str:
    shown = line.strip() if len(line.strip()) <= 60 else line.strip()[:57] + "..."
    return (
        f"{key}: {path}, line {number}, column {error.colno} doesn't parse as JSON "
        f"({error.msg}): {shown}\n"
        'Expected one object per line, such as {"prompt": "..."}, or a file that is one array '
        "of objects. Fix or delete that line."
    )


def _json_array(path: Path, text: str, key: str) -> Iterator[Row]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{key}: {path}, line {error.lineno}, column {error.colno} doesn't parse as JSON "
            f"({error.msg}). It starts with [, so one array of objects was expected; for one "
            "object per line leave out the brackets and the commas between lines."
        ) from None
    for number, row in enumerate(rows, start=1):
        yield _checked(row, f"{path}, item {number}", key)


def _checked(row: Any, where: str, key: str) -> Row:
    if isinstance(row, dict):
        return row
    raise UserError(
        f"{key}: {where} is a JSON {type(row).__name__}, expected an object such as "
        '{"prompt": "..."}.'
    )


def _read_folder(path: Path, split: str, key: str) -> list[Row]:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return _load_from_disk(path, split, key)
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    known = [file for file in files if file.suffix.lower() in (*_JSON, *_READERS)]
    if not known:
        raise UserError(f"{key}: the folder {path} holds no data files; expected {_FORMATS}.")
    for file in known:  # named line and file, where datasets would show a traceback
        if file.suffix.lower() in _JSON:
            for _ in _json_rows(file, key):
                pass
    return _load(str(path), key, str(path), split=split)


def refuse_missing_file(source: str, key: str) -> None:
    """UserError where nothing lies at `source`, the setting `key`, and it can be no name on the
    Hub: names the missing file, and one like it."""
    path = Path(source).expanduser()
    if source.startswith(PREFIX) or path.exists():
        return
    data_file = path.suffix.lower() in (*_JSON, *_READERS)
    if not (data_file or source.startswith((".", "/", "~")) or source.count("/") > 1):
        return
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"{key}: {source} doesn't exist, and neither does the folder {folder}.")
    near = difflib.get_close_matches(path.name, [file.name for file in folder.iterdir()], 1, 0.75)
    hint = f" Did you mean {folder / near[0]}?" if near else ""
    raise UserError(f"{key}: the file {source} doesn't exist.{hint}")


def _read_hub(source: str, split: str, key: str) -> list[Row]:
    name, _, config = source.partition(":")
    return _load(source, key, name, *([config] if config else []), split=split)


def _load(source: str, key: str, *args: str, split: str, **options: Any) -> list[Row]:
    datasets = _quiet_datasets()
    try:
        return datasets.load_dataset(*args, split=split, **options).to_list()
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        reason = str(cause).strip() or type(cause).__name__
        if "no data" in reason or "No columns to parse" in reason:
            return []
        raise UserError(f"{key}: cannot read {source}: {reason}{_advice(reason)}") from None


def _advice(reason: str) -> str:
    if "Unknown split" in reason:
        return " Choose one with --data.split."
    if "onfig name is missing" in reason:
        return "\nWrite it behind the name, as NAME:CONFIG."
    if "on the Hub" in reason:
        return " There is no local file or folder of that name either."
    return ""


def _load_from_disk(path: Path, split: str, key: str) -> list[Row]:
    loaded = _quiet_datasets().load_from_disk(str(path))
    if not isinstance(loaded, dict):
        return loaded.to_list()
    if split not in loaded:
        raise UserError(
            f"{key}: {path} has no split {split!r}; its splits are: {', '.join(loaded)}. "
            "Choose one with --data.split."
        )
    return loaded[split].to_list()


def _quiet_datasets() -> Any:
    """The datasets library, without progress bars, info messages and its request that counts
    downloads."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it contacts a server for local files too
    return datasets
