"""Rows of a local file of text: JSON, CSV or lines, each value as it is written there."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lmpg.settings.section import UserError

logger = logging.getLogger(__name__)

Row = dict[str, Any]

JSON = (".json", ".jsonl", ".ndjson")
TEXTS = (*JSON, ".csv", ".tsv", ".txt")
_COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
_POINTER = b"version https://git-lfs.github.com/spec/"
_FOREIGN = {  # how a file begins that is not the text that its ending promises: what it is, the fix
    b"PAR1": ("parquet", "give it the ending .parquet"),
    b"ARROW1": ("Arrow", "give it the ending .arrow"),
    b"\x1f\x8b": ("compressed with gzip", "add the ending .gz"),
    b"BZh": ("compressed with bzip2", "add the ending .bz2"),
    b"\xfd7zXZ": ("compressed with xz", "add the ending .xz"),
    b"PK\x03\x04": ("a zip archive or an Excel file", "unpack it, or save the sheet as CSV"),
    b"\xff\xfe\0\0": ("UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8 FILE > NEW"),
    b"\xff\xfe": ("UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
    b"\xfe\xff": ("UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
}
MOST_NESTED = 100  # levels of brackets; far more than data has, far fewer than Python can write
MOST_DIGITS = 4300  # of an integer, as many as Python reads
_TOO_DEEP = f"is nested deeper than {MOST_NESTED} levels, expected flat data"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_HALVES = re.compile("[\ud800-\udfff]")


def rows_of_text(path: Path, where: str) -> list[Row]:
    """All rows of a file of text. where: the setting that it came from and its path."""
    text, ending = text_of(path, where), ending_of(path)
    if ending in JSON:
        return list(_json_rows(text, where))
    if ending == ".txt":
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return [{"text": line} for line in (lines if lines[-1] else lines[:-1])]
    return list(_csv_rows(text, where, "\t" if ending == ".tsv" else ","))


def is_one_object(path: Path, where: str) -> bool:
    """Whether a file is one JSON object over several lines, as descriptions of data sets are."""
    text = text_of(path, where).strip() if ending_of(path) in JSON else ""
    several = text.startswith("{") and "\n" in text
    return several and not _parses(text.partition("\n")[0]) and _parses(text)


def ending_of(path: Path) -> str:
    """The ending that tells the format, without that of a compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _COMPRESSED else suffix


def text_of(path: Path, where: str) -> str:
    """The text of a file, unpacked; refuses what is no text in UTF-8."""
    refuse_pointer(path, where)
    unpack = _COMPRESSED.get(path.suffix.lower(), bytes)
    try:
        data = unpack(path.read_bytes())
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise UserError(f"{where} is damaged, it can't be read ({error}): get it anew.") from None
    for beginning, (what, fix) in _FOREIGN.items():
        if data.startswith(beginning):
            raise UserError(f"{where} is {what}, expected text in UTF-8: {fix}.")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise UserError(
            f"{where}, line {line} holds a NUL byte, expected text in UTF-8: it is no text, or "
            "UTF-16 without its mark (convert it: iconv -f UTF-16LE -t UTF-8 FILE > NEW)."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where}, line {line} is not UTF-8 text ({error.reason}). If it is Latin-1 or Windows "
            "text, convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW."
        ) from None


def refuse_pointer(path: Path, where: str) -> None:
    """Raises for a file that can't be read, and for the pointer that Git LFS leaves where it has
    not fetched one."""
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_POINTER))
    except OSError as error:
        raise UserError(f"{where} can't be read: {error.strerror}.") from None
    if beginning == _POINTER:
        raise UserError(f"{where} is a Git LFS pointer, not the data itself: run git lfs pull.")


def _json_rows(text: str, where: str) -> Iterator[Row]:
    """Rows of an array of objects, of one object per line, or of objects over several lines."""
    if text.lstrip().startswith("["):
        rows = enumerate(_json_array(text, where), start=1)
        found = [(f"{where}, item {number}", row) for number, row in rows]
    else:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if lines and lines[0][1].rstrip().endswith(("{", "[", ",")):  # it goes on in the next line
            found = list(_json_stream(text, where))
        else:
            found = [(f"{where}, line {n}", _json_line(line, n, where)) for n, line in lines]
    halves = []
    suspect = _HALF.search(text)
    for place, row in found:
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


def _csv_rows(text: str, where: str, separator: str) -> Iterator[Row]:
    """Rows of a table with a header: every field as the text that stands there, None if empty."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
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
