"""What notebooks show of a run: tables and pages as HTML. Text of models is escaped."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmpg.runs.report.page import table
from lmpg.settings.hints import did_you_mean
from lmpg.settings.section import UserError

_SHOWN, _LONGEST = 20, 300
"""Rows of a table, and characters of a cell."""


class Table(list[dict[str, Any]]):
    """Rows of metrics or samples: a list of dicts, which `pandas.DataFrame` takes, too."""

    def column(self, name: str) -> list[Any]:
        """The values of a column, None where a row has none; UserError where no row has one."""
        if self and not any(name in row for row in self):
            known = dict.fromkeys(key for row in self for key in row)
            hint = did_you_mean(name, known)
            raise UserError(f"no column {name!r}; {hint}expected one of {', '.join(known)}")
        return [row.get(name) for row in self]

    def _repr_html_(self) -> str:
        columns = list(dict.fromkeys(name for row in self for name in row))
        rows = [[row.get(name, "") for name in columns] for row in self]
        if len(rows) <= _SHOWN:
            return html_table(columns, rows)
        half = _SHOWN // 2
        cut = [*rows[:half], ["…"] * len(columns), *rows[-half:]]
        return html_table(columns, cut) + f"<p>{len(rows)} rows, {len(columns)} columns</p>"


class Summary(dict[str, Any]):
    """What summary.json holds."""

    def _repr_html_(self) -> str:
        return html_table(["", ""], [[name, value] for name, value in self.items()])


class Page(os.PathLike[str]):
    """A file of HTML; a notebook shows it in a frame."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        return frame(self.path.read_text(encoding="utf-8"))


def frame(page: str) -> str:
    """A page of HTML within another one."""
    return (
        f'<iframe srcdoc="{html.escape(page, quote=True)}" sandbox="allow-scripts" '
        'style="width:100%;height:40em;border:0"></iframe>'
    )


def html_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of HTML; numbers in six digits, long texts cut."""
    return table(columns, [[html.escape(_cell(x)) for x in row] for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(x)}" for key, x in value.items())
    text = "" if value is None else str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
