"""Model folders as transformers writes them, without its progress bars and load reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """For the time of a block in which models are read or written; errors still raise."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def save_folder(folder: Path | str, model: Any, tokenizer: Any) -> None:
    """Model and tokenizer for `from_pretrained`."""
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
