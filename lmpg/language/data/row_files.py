"""Rows of a local file of text: JSON, CSV or lines, each value as it is written there."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from lmpg.language.data.storage.row_store import Row, Rows, packed
from lmpg.language.data.storage.text_files import ending_of, opened_text, require_text
from lmpg.runtime.progress import with_progress
from lmpg.settings.section import UserError

logger = logging.getLogger(__name__)

JSON = (".json", ".jsonl", ".ndjson")
TEXTS = (*JSON, ".csv", ".tsv", ".txt")
MOST_NESTED = 100  # levels of brackets; far more than data has, far fewer than Python can write
MOST_DIGITS = 4300  # of an integer, as many as Python reads
_TOO_DEEP = f"is nested deeper than {MOST_NESTED} levels, expected flat data"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_HALVES = re.compile("[\ud800-\udfff]")


def rows_of_text(path: Path, where: str) -> Rows:
    """All rows of a file of text. where: the setting that it came from and its path."""
    require_text(path, where)
    ending = ending_of(path)
    newline = "\n" if ending in JSON else None if ending == ".txt" else ""
    with opened_text(path, newline) as file:
        if ending in JSON:
            rows = _json_rows(file, where)
        elif ending == ".txt":
            rows = ({"text": line.removesuffix("\n")} for line in file)
        else:
            rows = _csv_rows(file, where, "\t" if ending == ".tsv" else ",")
        return packed(with_progress(rows, f"rows of {path.name} read"))


def is_one_object(path: Path, where: str) -> bool:
    """Whether a file is one JSON object over several lines, as descriptions of data sets are."""
    if ending_of(path) not in JSON:
        return False
    require_text(path, where)
    with opened_text(path, "\n") as file:
        first = _first_line(file)
        if not first.startswith("{") or _parses(first):
            return False
        file.seek(0)
        return _parses(file.read())


def _first_line(file: IO[str]) -> str:
    """The first line that holds more than spaces, without those around it."""
    return next((line.strip() for line in file if line.strip()), "")


def _json_rows(file: IO[str], where: str) -> Iterator[Row]:
    """Rows of an array of objects, of one object per line, or of objects over several lines."""
    halves = []
    for place, row, suspect in _json_values(file, where):
        if not isinstance(row, dict):
            raise UserError(
                f"{place} is a JSON {type(row).__name__}, expected an object such as "
                '{"prompt": "..."}.'
            )
        _refuse_deep(row, place)
        whole = with_whole_characters(row) if suspect else row
        if whole != row:
            halves.append(place)
        yield whole
    if halves:
        more = f" (and {len(halves) - 1} more rows)" if len(halves) > 1 else ""
        logger.warning("%s%s holds half a character, read as \ufffd", halves[0], more)


def _json_values(file: IO[str], where: str) -> Iterator[tuple[str, Any, bool]]:
    """Where each value is, the value, and whether it may hold half a character."""
    first = _first_line(file)
    file.seek(0)
    if first.startswith("["):
        text = file.read()
        suspect = bool(_HALF.search(text))
        for number, row in enumerate(_json_array(text, where), start=1):
            yield f"{where}, item {number}", row, suspect
    elif first.endswith(("{", "[", ",")):  # it goes on in the next line
        text = file.read()
        suspect = bool(_HALF.search(text))
        for place, row in _json_stream(text, where):
            yield place, row, suspect
    else:
        for number, line in enumerate(file, start=1):
            if line.strip():
                row = _json_line(line.removesuffix("\n"), number, where)
                yield f"{where}, line {number}", row, bool(_HALF.search(line))


def _json_line(line: str, number: int, where: str) -> Any:
    try:
        return _parsed(line, f"{where}, line {number}")
    except json.JSONDecodeError as error:
        shown = line.strip() if len(line.strip()) <= 60 else line.strip()[:57] + "..."
        raise UserError(
            f"{where}, line {number}, column {error.colno} doesn't parse as JSON "
            f"({error.msg}): {shown} — expected one object per line, such as "
            '{"prompt": "..."}, or a file that is one array of objects. Fix or delete that line.'
        ) from None


def _json_array(text: str, where: str) -> list[Any]:
    try:
        return _parsed(text, where)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}, line {error.lineno}, column {error.colno} doesn't parse as JSON "
            f"({error.msg}). It starts with [, so one array of objects was expected; for one "
            "object per line leave out the brackets and the commas between lines."
        ) from None


def _json_stream(text: str, where: str) -> Iterator[tuple[str, Any]]:
    """Objects one after the other, each over several lines, as `jq` writes them."""
    begin = _after_space(text, 0)
    while begin < len(text):
        place = f"{where}, line {text.count(chr(10), 0, begin) + 1}"
        try:
            row, end = _guarded(partial(_DECODER.raw_decode, text, begin), place)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{place} begins an object that doesn't parse as JSON in line {error.lineno}, "
                f"column {error.colno} ({error.msg}). Expected one object per line, or a file "
                "that is one array of objects."
            ) from None
        yield place, row
        begin = _after_space(text, end)


def _after_space(text: str, start: int) -> int:
    found = re.compile(r"\s*").match(text, start)
    return found.end() if found else start


def _parsed(text: str, where: str) -> Any:
    return _guarded(partial(_DECODER.decode, text), where)


def _parses(text: str) -> bool:
    try:
        _parsed(text, "")
    except ValueError:
        return False
    return True


def _guarded(parse: Callable[[], Any], where: str) -> Any:
    """What `parse` gives; raises UserError for what JSON allows and data should not hold."""
    try:
        return parse()
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise UserError(f"{where} {_TOO_DEEP}") from None
    except ValueError as error:
        raise UserError(f"{where} {error}.") from None


def _object(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, times in Counter(n for n, _ in pairs).items() if times > 1)
        raise ValueError(f"has the key {twice!r} twice in one object, expected it once")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(
            f"holds an integer of {len(digits)} digits, expected at most {MOST_DIGITS}: write it "
            "as text, in quotes"
        )
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


def _refuse_deep(row: Row, where: str) -> None:
    """Raises for lists and objects within each other beyond any use."""
    level: list[Any] = [row]
    for _ in range(MOST_NESTED):
        inner = [x for x in level if isinstance(x, (dict, list))]
        if not inner:
            return
        level = [y for x in inner for y in (x.values() if isinstance(x, dict) else x)]
    raise UserError(f"{where} {_TOO_DEEP}")


def with_whole_characters(value: Any) -> Any:
    """`value`, with U+FFFD for every half of a character of two (a lone surrogate)."""
    if isinstance(value, str):
        return value if value.isascii() else _HALVES.sub("\ufffd", value)
    if isinstance(value, list):
        return [with_whole_characters(x) for x in value]
    if isinstance(value, dict):
        both = with_whole_characters
        return {both(name): both(x) for name, x in value.items()}
    return value


def _csv_rows(file: IO[str], where: str, separator: str) -> Iterator[Row]:
    """Rows of a table with a header: every field as the text that stands there, None if empty."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(file, delimiter=separator, strict=True)
    names: list[str] = []
    try:
        for fields in reader:
            if not "".join(fields).strip() and len(fields) < 2:
                continue  # an empty line
            if not names:
                names = _header(fields, where)
                continue
            if len(fields) != len(names):
                raise UserError(
                    f"{where}, line {reader.line_num} has {len(fields)} of the {len(names)} fields "
                    f"that the header has, expected as many: a field that holds {separator!r}, "
                    "quotes or line breaks stands in double quotes, and quotes within are doubled."
                )
            yield {name: field or None for name, field in zip(names, fields)}
    except csv.Error as error:
        raise UserError(
            f"{where}, line {reader.line_num} doesn't parse as a table ({error}). A field that "
            f"holds {separator!r}, quotes or line breaks stands in double quotes, and quotes "
            "within it are doubled."
        ) from None


def _header(fields: list[str], where: str) -> list[str]:
    """Names of the columns; one without a name is called as pandas calls it."""
    if len(fields) == 1 and (other := next((x for x in ";\t|" if x in fields[0]), None)):
        raise UserError(
            f"{where} separates its fields by {other!r}, it seems: its header is {fields[0]!r}. "
            "Expected commas in .csv and tabs in .tsv."
        )
    names = [name or f"Unnamed: {i}" for i, name in enumerate(fields)]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"{where} has two columns {twice[0]!r}, expected different names.")
    return names
