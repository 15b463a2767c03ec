"""A sequence-classification model with one label as a reward."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from lmpg.data.tokenizing import cut_left, scored_ids, start_ids
from lmpg.models.loading import context_length, load_sequence_classifier
from lmpg.models.scoring import SequenceScorer
from lmpg.sections import UserError


class ModelReward:
    """Scores prompt + completion, read as reward-model training reads them.

    scorer: has `score(list of token ids) -> list of floats`, such as SequenceScorer.
    max_tokens: the model's context; longer texts lose their beginning.
    """

    def __init__(self, name: str, scorer: Any, tokenizer: Any, max_tokens: int):
        self.name = name
        self.scorer = scorer
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.messages: list[str] = []
        self.notes: list[str] = []

    @classmethod
    def load(cls, path: str, *, trust_remote_code: bool, device: str) -> ModelReward:
        """The model and tokenizer of a folder or Hub id."""
        model = load_sequence_classifier(path, trust_remote_code=trust_remote_code).to(device)
        folder = Path(path).expanduser()
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder) if folder.is_dir() else path, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"rewards.models: {path} has no tokenizer that loads, expected one beside the "
                f"model: {str(error).splitlines()[0]}"
            ) from None
        context = min(context_length(model.config, tokenizer), tokenizer.model_max_length)
        return cls(model_name(path), SequenceScorer(model, tokenizer), tokenizer, context)

    def score(
        self,
        prompts: list,
        completions: list,
        completion_ids: list[list[int]],
        columns: dict[str, list],
    ) -> list[float | None]:
        """One finite score per completion, or None where the model's is not finite."""
        start = start_ids(self.tokenizer)
        ids = [scored_ids(self.tokenizer, p, c) for p, c in zip(prompts, completions)]
        scores = self.scorer.score([cut_left(one, self.max_tokens, start) for one in ids])
        self.messages = [f"the model gave {score}" for score in scores if not math.isfinite(score)]
        return [float(score) if math.isfinite(score) else None for score in scores]

    def close(self) -> None:
        """Nothing to end."""


def model_name(path: str) -> str:
    """Last part of a path or Hub id that says more than that it is a run's result."""
    folder = Path(path).expanduser()
    parts = [part for part in folder.parts if part not in ("final", "merged", "best")]
    return parts[-1] if parts and parts[-1] != folder.root else folder.name
