"""Scores of whole sequences by a reward model, read at the last real token."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lmpg.language.models.forward.kept_weights import is_low, widened
from lmpg.language.models.forward.padding import bears_padding
from lmpg.language.models.forward.recompute import layers_recomputed
from lmpg.language.models.inputs import accepted, mask_and_positions, pad_left, pad_right
from lmpg.language.models.loading import context_length
from lmpg.runtime.sharding import as_forward
from lmpg.settings.section import UserError

logger = logging.getLogger(__name__)


def sequence_scores(model: nn.Module, ids: Sequence[Sequence[int]]) -> Tensor:
    """One score per row of token ids, float32 [N], with gradient; all rows in one batch.

    The logit of the last real token, whatever the padding: where the last tokens are is known
    from lengths, not from a search for the pad token. A model without a linear `score` head on its
    trunk (BERT and its kin) computes the logit itself and needs a pad_token_id.
    """
    if not all(map(len, ids)):
        raise ValueError("a sequence without tokens has no score, expected at least one token each")
    return as_forward(model, partial(_scores, model, ids))


def _scores(model: nn.Module, ids: Sequence[Sequence[int]]) -> Tensor:
    device = next(model.parameters()).device
    lengths_N = torch.tensor([len(row) for row in ids], device=device)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or model.base_model is model:
        return _own_forward(model, ids, lengths_N)
    trunk: Any = model.base_model
    left = bears_padding(trunk)
    ids_NL = (pad_left if left else pad_right)(ids, 0).to(device)
    end_N = torch.full_like(lengths_N, ids_NL.shape[1]) if left else lengths_N
    mask_NL, positions_NL = mask_and_positions(end_N - lengths_N, end_N, ids_NL.shape[1])
    arguments = {"input_ids": ids_NL, "attention_mask": mask_NL, "position_ids": positions_NL}
    with layers_recomputed(trunk):
        hidden_NLD = trunk(**accepted(trunk, arguments), use_cache=False).last_hidden_state
    rows_N = torch.arange(len(end_N), device=device)
    # index_select, not x[index]: its backward is deterministic
    hidden_ND = hidden_NLD.flatten(0, 1).index_select(0, rows_N * ids_NL.shape[1] + end_N - 1)
    with torch.autocast(device.type, enabled=False):
        return head(hidden_ND.float())[:, 0]


def _own_forward(model: Any, ids: Sequence[Sequence[int]], lengths_N: Tensor) -> Tensor:
    pad_token_id = model.config.get_text_config().pad_token_id
    if pad_token_id is None:
        raise UserError(
            f"the reward model {model.config.name_or_path or type(model).__name__} has no "
            "pad_token_id, expected one in its config.json, because its own forward needs it to "
            "score several texts together"
        )
    ids_NL = pad_right(ids, pad_token_id).to(lengths_N.device)
    mask_NL, _ = mask_and_positions(lengths_N * 0, lengths_N, ids_NL.shape[1])
    with layers_recomputed(model.base_model):
        return model(input_ids=ids_NL, attention_mask=mask_NL).logits[:, 0].float()


class SequenceScorer:
    """Scores texts or token ids in micro-batches of similar length.

    A sequence longer than the model's context loses its first tokens, with one warning.
    """

    def __init__(self, model: nn.Module, tokenizer, tokens_per_batch: int = 8192):
        self.model = model.eval()
        self._low = is_low(model)
        self.tokenizer = tokenizer
        self.tokens_per_batch = tokens_per_batch
        self._context = min(context_length(model.config, tokenizer), tokenizer.model_max_length)
        self._warned = False

    @torch.no_grad()
    def score(self, sequences: Sequence[str] | Sequence[Sequence[int]]) -> list[float]:
        """One score per text or list of token ids, in their order."""
        rows = [self._ids(sequence) for sequence in sequences]
        scores = [0.0] * len(rows)
        for batch in self._batches(rows):
            with widened(self._low):
                found = sequence_scores(self.model, [rows[i] for i in batch]).tolist()
            for i, score in zip(batch, found):
                scores[i] = score
        return scores

    def _ids(self, sequence: str | Sequence[int]) -> Sequence[int]:
        """Token ids of a sequence, the last ones that fit into the context."""
        ids = self.tokenizer(sequence)["input_ids"] if isinstance(sequence, str) else sequence
        if len(ids) > self._context and not self._warned:
            self._warned = True
            logger.warning(
                "a sequence of %d tokens exceeds the reward model's context of %d; "
                "it and others like it are scored without their first tokens",
                len(ids),
                self._context,
            )
        return ids[-self._context :]

    def _batches(self, rows: list[Sequence[int]]) -> list[list[int]]:
        """Row numbers, shortest rows first, at most `tokens_per_batch` padded tokens together."""
        batches: list[list[int]] = []
        lengths = list(map(len, rows))
        for i in sorted(range(len(rows)), key=lengths.__getitem__):
            if not batches or (len(batches[-1]) + 1) * lengths[i] > self.tokens_per_batch:
                batches.append([])
            batches[-1].append(i)
        return batches
