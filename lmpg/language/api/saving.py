"""Models in memory become folders, which a run reads as it does those of the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SAVES = "save_pretrained"
"""What models and tokenizers of transformers and peft can do."""


def saves(model: Any, tokenizer: Any) -> Callable[[Path], None]:
    """A function that writes a model with its tokenizer, or one of them, into a folder."""

    def save(folder: Path) -> None:
        from lmpg.language.models.precision import no_progress_bars  # brings transformers along

        with no_progress_bars():
            for part in (model, tokenizer):
                if part is not None:
                    part.save_pretrained(str(folder))

    return save
