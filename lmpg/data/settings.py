"""Settings of the `data` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lmpg.sections import Section


class DataSettings(Section):
    """Where prompts, texts or preference pairs come from."""

    path: str | None = None
    """Hub name, or a local json, jsonl, csv or parquet file (or a folder of them)."""
    eval_path: str | None = None
    """The same for held-out data; none holds back `num_eval` rows of `path`."""
    split: str = "train"
    """Split to read where the source has several."""
    prompt_column: str | None = None
    """Column with the prompt, text or chat messages; none looks for `prompt`."""
    overlong: Literal["error", "skip", "truncate-left"] = "error"
    """What to do with a prompt that leaves no room for the response in the model's context."""
    num_eval: int = Field(256, ge=1)
    """Held-out rows at most that evaluation uses."""
