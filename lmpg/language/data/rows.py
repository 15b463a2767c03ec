"""Reads a data set as rows, from local files, folders or the Hub, with readable errors."""

from __future__ import annotations

import difflib
import glob
import logging
import re
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from lmpg.language.data.chat import OPTIONS
from lmpg.language.data.reasoning import PREFIX, reasoning_rows
from lmpg.language.data.row_files import TEXTS, is_one_object, rows_of_text
from lmpg.language.data.storage.row_store import Row, Rows, as_rows, joined, of_table
from lmpg.language.data.storage.text_files import ending_of, refuse_pointer
from lmpg.settings.on_the_hub import access_advice, remember_commit
from lmpg.settings.section import UserError

logger = logging.getLogger(__name__)

FORMATS = ".json, .jsonl, .csv, .tsv, .parquet, .arrow or .txt (text also in .gz, .bz2 or .xz)"
_TABLES = {".parquet": "parquet", ".arrow": "arrow"}
_LONGEST_REASON = 400
"""Characters of a foreign error."""
_SAID_OF_NOTHING = ("no data", "No columns to parse", "BatchSize must be greater than 0")


def read_rows(source: str, split: str, key: str = "data.path", revision: str | None = None) -> Rows:
    """All rows of `source`: `reasoning_gym:TASK`, a local file or folder, else `NAME` or
    `NAME:CONFIG` on the Hub.

    key: the setting that `source` came from, for messages. revision: of a data set on the Hub.
    """
    refuse_missing_file(source, key, revision)
    path = Path(source).expanduser()
    if source.startswith(PREFIX):
        rows = as_rows(reasoning_rows(source, key))
    elif path.is_file():
        rows = _in_one(rows_of_file(path, key), split, path, key)
    elif path.is_dir():
        rows = _read_folder(path, split, key)
    else:
        rows = _read_hub(source, split, key, revision)
    if not rows:
        raise UserError(f"{key}: {source} is empty: it has no rows. Expected at least one.")
    return rows


def rows_of_file(path: Path, key: str) -> Rows:
    """All rows of a file, the same ones alone, in a folder and compressed."""
    ending, where = ending_of(path), f"{key}: {path}"
    if ending in TEXTS:
        return rows_of_text(path, where)
    if path.suffix.lower() not in _TABLES:
        raise UserError(f"{where} has the ending {path.suffix.lower()!r}, expected {FORMATS}.")
    refuse_pointer(path, where)
    return _load(str(path), key, _TABLES[ending], data_files=glob.escape(str(path)), split="train")


def is_data_file(path: Path) -> bool:
    """Whether its ending is that of a format which can be read."""
    return ending_of(path) in TEXTS or path.suffix.lower() in _TABLES


def _read_folder(path: Path, split: str, key: str) -> Rows:
    saved = (path / "state.json").exists() and (path / "dataset_info.json").exists()
    if saved or (path / "dataset_dict.json").exists():
        return _load_from_disk(path, split, key)
    known = [file for file in sorted(path.rglob("*")) if is_data_file(file) and not file.is_dir()]
    if not known:
        raise UserError(f"{key}: the folder {path} holds no data files; expected {FORMATS}.")
    for file in known:
        _require_readable(file, key)
    files = _files_of_splits(path, key)
    chosen = [file for part in files.values() for file in part]
    objects = [x for x in chosen if len(chosen) > 1 and is_one_object(x, f"{key}: {x}")]
    left = {x.resolve() for x in known} - {x.resolve() for x in chosen} | {*objects}
    if left:
        names = ", ".join(sorted(map(str, left)))
        logger.warning("%s: of the folder %s these files are not read: %s", key, path, names)

    @cache
    def rows(name: str) -> Rows:
        return joined(rows_of_file(file, key) for file in files[name] if file not in objects)

    return _in_split(split, files, rows, path, key)


def _in_split(
    split: str, names: Iterable[str], rows: Callable[[str], Rows], path: Path, key: str
) -> Rows:
    """The rows that `split` asks for: those of a name, or of such as train[:50%]+test.

    names: of the splits that there are. rows: gives those of one.
    """
    names = list(names)
    if split in names:
        return rows(split)
    instruction = _quiet_datasets().ReadInstruction
    asked_for = [name for name in names if re.search(rf"\b{re.escape(name)}\b", split)] or names
    try:
        found = instruction.from_spec(split).to_absolute({x: len(rows(x)) for x in asked_for})
    except (ValueError, AssertionError) as error:
        raise _unreadable(path, key, error) from None
    return joined(rows(part.splitname)[part.from_ : part.to] for part in found)


def _in_one(rows: Rows, split: str, path: Path, key: str) -> Rows:
    """What `split` asks for of a source that has no splits: all of it is called train."""
    if "[" in split or "+" in split:
        return _in_split(split, ["train"], lambda _: rows, path, key)
    if split != "train":
        logger.warning("%s: %s has no splits, so the split %r is all of it", key, path, split)
    return rows


def _files_of_splits(path: Path, key: str) -> dict[str, list[Path]]:
    """The data files of each split, by the folder's card or else by the files' names."""
    if glob.has_magic(str(path)):
        raise UserError(
            f"{key}: the name of the folder {path} holds one of * ? [ ], which stand for other "
            "characters in patterns of files: rename it."
        )
    datasets = _quiet_datasets()
    try:
        files = datasets.load_dataset_builder(str(path)).config.data_files
    except Exception as error:  # whatever it meets in the folder's card and names
        raise _unreadable(path, key, error) from None
    return {str(name): [Path(file) for file in part] for name, part in files.items()}


def refuse_missing_file(source: str, key: str, revision: str | None = None) -> None:
    """UserError where nothing that can be read lies at `source`, the setting `key`, and it can be
    no name on the Hub: names the missing file, and one like it. A revision needs such a name."""
    if "://" in source:
        raise UserError(
            f"{key}: {source} is an address, expected a file, a folder or a name on the Hub: "
            "download it, and give the file."
        )
    path = Path(source).expanduser()
    if source.startswith(PREFIX) or _require_readable(path, key):
        if revision is not None:
            raise UserError(
                f"data.revision = {revision}, but {key} = {source} is not on the Hub, expected the "
                "name of a data set there, whose branches, tags and commits it names: leave it out."
            )
        return
    if not (is_data_file(path) or source.startswith((".", "/", "~")) or source.count("/") > 1):
        return
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"{key}: {source} doesn't exist, and neither does the folder {folder}.")
    near = difflib.get_close_matches(path.name, [file.name for file in folder.iterdir()], 1, 0.75)
    hint = f" Did you mean {folder / near[0]}?" if near else ""
    raise UserError(f"{key}: the file {source} doesn't exist.{hint}")


def _require_readable(path: Path, key: str) -> bool:
    """Whether there is something at `path`; raises for what is neither a file nor a folder."""
    if "\0" in str(path):
        raise UserError(f"{key}: {str(path)!r} holds a NUL character, expected a path or a name.")
    try:
        if path.is_file() or path.is_dir():
            return True
        if path.is_symlink() and not path.exists():
            raise UserError(f"{key}: {path} is a link to {path.readlink()}, which doesn't exist.")
        found = path.exists()
    except OSError as error:
        raise UserError(f"{key}: {path} can't be read: {error.strerror}.") from None
    if found:
        raise UserError(
            f"{key}: {path} is a pipe or a device, expected a file or a folder, since it is read "
            "again on resume: write its contents to a file."
        )
    return False


def _read_hub(source: str, split: str, key: str, revision: str | None) -> Rows:
    name, _, config = source.partition(":")
    at = {} if revision is None else {"revision": revision}
    return _load(source, key, name, *([config] if config else []), split=split, **at)


def _load(source: str, key: str, *args: str, split: str, **options: Any) -> Rows:
    datasets = _quiet_datasets()
    try:
        table = datasets.load_dataset(*args, split=split, **options)
        if table.cache_files:
            remember_commit(args[0], table.cache_files[0]["filename"])
        return of_table(table, _unpadded)
    except Exception as error:  # whatever it meets in damaged files
        if any(x in str(error.__cause__ or error) for x in _SAID_OF_NOTHING):
            return as_rows([])
        raise _unreadable(source, key, error) from None


def _unreadable(source: Any, key: str, error: Exception) -> UserError:
    """The library's error in one line, with what to do about it."""
    cause = error.__cause__ or error
    said = str(cause).strip() if isinstance(cause, ValueError | OSError | RuntimeError) else ""
    reason = textwrap.shorten(said or f"{type(cause).__name__}: {cause}", _LONGEST_REASON)
    advice = access_advice(error)
    advice = f" Either {advice}." if advice else ""
    return UserError(f"{key}: cannot read {source}: {reason}{advice}{_advice(reason, source)}")


def _advice(reason: str, source: Any) -> str:
    if "Unknown split" in reason:
        return " Choose one with --data.split."
    if "onfig name is missing" in reason and isinstance(source, Path):
        return " Give the files of one as data.path, or take the others out of the README.md there."
    if "onfig name is missing" in reason:
        return " Write it behind the name, as NAME:CONFIG."
    if "Dataset scripts" in reason:
        return " Code of a data set is never run: save its rows as parquet or JSON lines."
    if "on the Hub" in reason:
        return " There is no local file or folder of that name either."
    return ""


def of_datasets(table: Any) -> Rows:
    """The rows of a table of the datasets library that is in memory."""
    return of_table(table, _unpadded)


def _load_from_disk(path: Path, split: str, key: str) -> Rows:
    for file in path.rglob("*.arrow"):
        refuse_pointer(file, f"{key}: {file}")
    try:
        loaded = _quiet_datasets().load_from_disk(str(path))
    except Exception as error:  # whatever it meets in damaged files
        raise _unreadable(path, key, error) from None
    if not isinstance(loaded, dict):
        return _in_one(of_table(loaded, _unpadded), split, path, key)
    return _in_split(split, loaded, lambda name: of_table(loaded[name], _unpadded), path, key)


def _unpadded(row: Row) -> Row:
    """The row, whose messages, tools and variables of a chat template have only the keys that were
    given: Arrow's tables give each the keys of all others too, with None."""
    return {name: _given(x) if name in OPTIONS or _is_chat(x) else x for name, x in row.items()}


def _is_chat(value: Any) -> bool:
    each = value if isinstance(value, list) else []
    return bool(each) and all(isinstance(x, dict) and "role" in x for x in each)


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _given(x) for name, x in value.items() if x is not None}
    return [_given(x) for x in value] if isinstance(value, list) else value


def _quiet_datasets() -> Any:
    """The datasets library, without progress bars, info messages and its request that counts
    downloads."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # errors are said here, in one line
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it contacts a server for local files too
    return datasets
