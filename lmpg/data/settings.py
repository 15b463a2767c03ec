"""Settings of the `data` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lmpg.sections import Section


class DataSettings(Section):
    """Where prompts, texts or preference pairs come from."""

    world: Literal["reviews", "addition"] = "reviews"
    """Built-in world that gives model, data and reward where `model.path` is not set."""
    path: str | None = None
    """Hub name (NAME or NAME:CONFIG), a local json, jsonl, csv or parquet file or folder, or
    `reasoning_gym:TASK`, a task of reasoning-gym."""
    eval_path: str | None = None
    """The same for held-out data; none holds back `num_eval` rows of `path`."""
    split: str = "train"
    """Split to read where the source has several."""
    eval_split: str | None = None
    """Split of the held-out data; none reads `split` of `eval_path`."""
    prompt_column: str | None = None
    """Column with the prompt, text or chat messages; none looks for `prompt`."""
    answer_column: str | None = None
    """Column that rewards get as `answer`, the reference; none leaves `answer` as it is."""
    completion_column: str = "completion"
    """Column with the answer to a prompt, for supervised training."""
    chosen_column: str = "chosen"
    """Column with the better answer of a pair, for reward models."""
    rejected_column: str = "rejected"
    """Column with the worse answer of a pair, for reward models."""
    label_column: str = "label"
    """Column with a number per text: any higher label beats any lower, for reward models."""
    overlong: Literal["error", "skip", "truncate-left"] = "error"
    """What to do with a prompt that leaves no room for the response in the model's context."""
    num_eval: int = Field(256, ge=1)
    """Held-out rows at most that evaluation uses."""
