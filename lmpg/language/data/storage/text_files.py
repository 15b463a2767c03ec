"""Files of text, unpacked while they are read, and refused where they hold no text in UTF-8."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from lmpg.settings.section import UserError

_COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
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
_BLOCK = 1 << 22


def ending_of(path: Path) -> str:
    """The ending that tells the format, without that of a compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _COMPRESSED else suffix


def opened_text(path: Path, newline: str | None) -> IO[str]:
    """The text of a file that `require_text` has passed, unpacked as it is read. newline: which
    line ends are told apart and translated, see `io.TextIOWrapper`."""
    return io.TextIOWrapper(_opened(path), encoding="utf-8-sig", newline=newline)


def require_text(path: Path, where: str) -> None:
    """UserError for a file that is no text in UTF-8, or can't be unpacked."""
    refuse_pointer(path, where)
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    lines = 0
    for number, block in enumerate(_blocks(path, where)):
        if number == 0:
            _refuse_foreign(block, where)
        if b"\0" in block:
            line = lines + block.count(b"\n", 0, block.index(b"\0")) + 1
            raise UserError(
                f"{where}, line {line} holds a NUL byte, expected text in UTF-8: it is no text, or "
                "UTF-16 without its mark (convert it: iconv -f UTF-16LE -t UTF-8 FILE > NEW)."
            )
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line = lines + error.object.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{where}, line {line} is not UTF-8 text ({error.reason}). If it is Latin-1 or "
                "Windows text, convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW."
            ) from None
        lines += block.count(b"\n")


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


def _opened(path: Path) -> Any:
    unpack = _COMPRESSED.get(path.suffix.lower())
    return unpack(path) if unpack else path.open("rb")


def _blocks(path: Path, where: str) -> Iterator[bytes]:
    """The bytes of a file, unpacked; the last block is empty."""
    try:
        with _opened(path) as file:
            while block := file.read(_BLOCK):
                yield block
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{where} is damaged, it can't be read ({error}): get it anew.") from None
    yield b""


def _refuse_foreign(beginning: bytes, where: str) -> None:
    for mark, (what, fix) in _FOREIGN.items():
        if beginning.startswith(mark):
            raise UserError(f"{where} is {what}, expected text in UTF-8: {fix}.")
