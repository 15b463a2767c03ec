"""The console that a run talks to: it may go away or know few letters, and the run goes on."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmpg.runs.printable import printable

PLAIN = str.maketrans({"→": "->", "−": "-", "–": "-", "…": "...", "×": "x", "·": ";"})


def _spell_out(record: logging.LogRecord) -> bool:
    """Warnings may quote a model or a reward."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


class Lasting:
    """A text stream that loses what cannot be written, and never raises for it.

    Letters that its encoding does not have become plain ones. Once the reader has gone (a closed
    pipe, a terminal that was hung up), all further output goes nowhere, for this process and those
    that it starts.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written; the length of all."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            known = self._stream.encoding
            plain = text.translate(PLAIN).encode(known, "replace").decode(known)
            with self._surviving():
                self._stream.write(plain)
        except (OSError, ValueError):  # ValueError: it was closed
            self._lose()
        return len(text)

    def writelines(self, lines: Any) -> None:
        """`write` each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand over what is buffered."""
        with self._surviving():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            self._lose()

    def _lose(self) -> None:
        """Point the stream's descriptor to nowhere, and drop what is buffered into it."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


@contextmanager
def lasting_console() -> Iterator[None]:
    """For the time of the block, stdout and stderr are `Lasting`, and all three standard
    descriptors are open: else a file of the run might get the number that libraries print to."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if logging.lastResort is not None:
        logging.lastResort.addFilter(_spell_out)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        Lasting(x) if x is not None and not isinstance(x, Lasting) else x for x in before
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
