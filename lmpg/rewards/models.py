"""A sequence-classification model with one label as a reward."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lmpg.data.tokenizing import cut_left, scored_ids, start_ids


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

    @classmethod
    def load(cls, path: str, *, trust_remote_code: bool, device: str) -> ModelReward:
        """The model and tokenizer of a folder or Hub id."""
        from lmpg.models.loading import load_sequence_classifier, load_tokenizer
        from lmpg.models.scoring import SequenceScorer

        tokenizer = load_tokenizer(path, trust_remote_code)
        model = load_sequence_classifier(path, trust_remote_code, device)
        limits = [getattr(model.config, "max_position_embeddings", None) or 1 << 30]
        limits.append(tokenizer.model_max_length)
        return cls(Path(path).name, SequenceScorer(model, tokenizer), tokenizer, min(limits))

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
