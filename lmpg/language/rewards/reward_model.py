"""A reward model as a reward: a sequence classifier with one label scores prompt + completion."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lmpg.language.data.chat import ChatOptions, Messages, chat_options
from lmpg.language.data.tokenizing import bos_ids, cut_left, scored_ids
from lmpg.language.models.forward.kept_weights import chosen_dtype, exact_dtype, keep_frozen
from lmpg.language.models.loading import (
    context_length,
    load_sequence_classifier,
)
from lmpg.language.models.precision import keep_angles_exact, num_weights
from lmpg.language.models.pretrained import pretrained_tokenizer
from lmpg.language.models.sequence_classifier import SequenceScorer
from lmpg.language.models.start.vocabulary import refuse_smaller_vocabulary
from lmpg.language.rewards.request import RewardReply, RewardRequest
from lmpg.language.rewards.worker import LONGEST_MESSAGE


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
        self._bos = bos_ids(tokenizer)

    @classmethod
    def load(
        cls, path: str, *, trust_remote_code: bool, device: str, dtype: str = "auto"
    ) -> ModelReward:
        """The model and tokenizer of a folder or Hub id; weights are kept as `model.dtype` says."""
        model = load_sequence_classifier(path, trust_remote_code=trust_remote_code)
        kept_in = chosen_dtype(dtype, exact_dtype(model))
        kept = keep_frozen(model.requires_grad_(False), kept_in).to(device)
        keep_angles_exact(kept)
        tokenizer = pretrained_tokenizer("rewards.models", path, trust_remote_code)
        refuse_smaller_vocabulary("rewards.models", path, model, tokenizer)
        context = min(context_length(model.config, tokenizer), tokenizer.model_max_length)
        return cls(model_name(path), SequenceScorer(kept, tokenizer), tokenizer, context)

    @property
    def num_weights(self) -> int:
        """How many weights the model has."""
        return num_weights(self.scorer.model)

    @property
    def num_bytes(self) -> int:
        """How much memory they take."""
        return sum(p.nbytes for p in self.scorer.model.parameters())

    def submit(self, request: RewardRequest) -> Callable[[], RewardReply]:
        """Models work in this process: it scores when the reply is asked for."""
        return partial(self.reply, request)

    def reply(self, request: RewardRequest) -> RewardReply:
        """One finite score per response; sample by sample if they fail together."""
        rows = list(zip(request.prompts, request.completions, _options(request)))
        try:
            return self._scores(rows)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"[:LONGEST_MESSAGE]
            if len(rows) == 1:
                return RewardReply([None], [failure])
            said = f"the batch of {len(rows)} failed ({failure})"
        reply = RewardReply()
        for i, (prompt, completion, _) in enumerate(rows):
            columns = {name: values[i : i + 1] for name, values in request.columns.items()}
            alone = replace(request, prompts=[prompt], completions=[completion], columns=columns)
            reply += self.reply(alone)
        if None not in reply.scores:
            reply.notes.append(f"{said}, but each sample alone has a score, which is slow")
        return reply

    def _scores(self, rows: list[tuple[Any, str | Messages, ChatOptions]]) -> RewardReply:
        whole = [scored_ids(self.tokenizer, *row) for row in rows]
        scores = self.scorer.score([cut_left(ids, self.max_tokens, self._bos) for ids in whole])
        if len(scores) != len(rows):
            raise ValueError(f"the model gave {len(scores)} scores for {len(rows)} responses")
        reply = RewardReply()
        if any(len(ids) > self.max_tokens for ids in whole):
            reply.notes.append(
                f"texts of more than {self.max_tokens} tokens, the model's context, are scored "
                "without their beginning"
            )
        for score in scores:
            if math.isfinite(score):
                reply.scores.append(float(score))
            else:
                reply.scores.append(None)
                reply.messages.append(f"the model gave {score}")
        return reply

    def close(self) -> None:
        """Nothing to end."""


def _options(request: RewardRequest) -> list[ChatOptions]:
    """What the columns of each prompt give the chat template; nothing where a prompt is text."""
    found = []
    for i, prompt in enumerate(request.prompts):
        row = {name: values[i] for name, values in request.columns.items()}
        found.append(chat_options(row, "the prompt") if isinstance(prompt, list) else {})
    return found


def model_name(path: str) -> str:
    """The last part of a path or Hub id, but for `final`, `merged` and `best` of a run's folder."""
    folder = Path(path).expanduser()
    parts = [part for part in folder.parts if part not in ("final", "merged", "best")]
    return parts[-1] if parts and parts[-1] != folder.root else folder.name
