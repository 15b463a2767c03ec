"""The files that data are read from, or what else they come from, for fingerprints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from lmpg.language.data.reasoning import PREFIX
from lmpg.language.data.rows import is_data_file, read_rows
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.storage.row_store import Row

Parts = dict[str, Path | str | Callable[[], Iterable[str]]]


def data_inputs(settings: DataSettings) -> dict[str, Parts]:
    """What `data.path` and `data.eval_path` hold: setting → name → file or text."""
    found = {"data.path": _parts(settings.path, settings.split, settings.revision)}
    if settings.chat_template is not None:
        found["data.chat_template"] = {"the template": Path(settings.chat_template).expanduser()}
    if settings.eval_path is not None:
        split = settings.eval_split or settings.split
        found["data.eval_path"] = _parts(settings.eval_path, split)
    return found


def rows_text(rows: Iterable[Row]) -> Iterator[str]:
    """Rows as one text, which is the same for equal rows alone, in pieces."""
    before = "["
    for row in rows:
        yield before + json.dumps(row, sort_keys=True, default=repr)
        before = ", "
    yield "[]" if before == "[" else "]"


def _parts(source: Any, split: str, revision: str | None = None) -> Parts:
    path = Path(str(source)).expanduser()
    if path.is_file():
        return {f"*{path.suffix}": path}  # a file's name may change, its format may not
    if path.is_dir():
        files = sorted(x for x in path.rglob("*") if x.is_file() and is_data_file(x))
        return {str(x.relative_to(path)): x for x in files}
    if str(source).startswith(PREFIX):
        return {"reasoning-gym": metadata.version("reasoning-gym")}
    rows = read_rows(str(source), split, revision=revision)
    return {f"the rows of {source}": partial(rows_text, rows)}
