"""Supervised fine-tuning on rows that hold several texts each: the same loss, less padding."""

from __future__ import annotations

import torch
from torch import Tensor

from lmpg.data.order import epoch_order
from lmpg.data.packing import rows_of
from lmpg.data.texts import Text
from lmpg.models.packing import packed_logprobs, refuse_unpackable
from lmpg.training.supervised import NextToken

Row = tuple[Text, ...]


class PackedNextToken:
    """`NextToken` with rows of texts as its examples; which texts share a row never changes."""

    headline = NextToken.headline
    lower_is_better = NextToken.lower_is_better
    unit = NextToken.unit

    def __init__(self, plain: NextToken) -> None:
        self.plain = plain
        self.module = plain.module
        refuse_unpackable(self.module)
        lengths = [len(text.ids) for text in plain.train]
        rows = rows_of(lengths, self.module.context_length)
        self.rows: list[Row] = [tuple(plain.train[i] for i in row) for row in rows]

    def epoch(self, number: int) -> list[Row]:
        """All rows, shuffled anew for each epoch."""
        return [self.rows[i] for i in epoch_order(len(self.rows), number, self.plain.seed)]

    def weight(self, example: Row) -> int:
        """Tokens to be predicted."""
        return sum(map(self.plain.weight, example))

    def num_tokens(self, example: Row) -> int:
        """Tokens to be read."""
        return sum(map(self.plain.num_tokens, example))

    def survey(self, batch: list[Row], parts: list[list[Row]]) -> None:
        """Nothing has to be known of a minibatch as a whole."""

    def sums(self, examples: list[Row]) -> dict[str, Tensor]:
        """Summed loss, and the summed entropy of the predictions."""
        if not examples:
            return self.plain.sums([])
        rows = [[(text.ids, text.learned) for text in row] for row in examples]
        logprobs_N, entropy_N = packed_logprobs(self.module, rows)
        return {"loss": -logprobs_N.sum(), "entropy": entropy_N.sum()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out figures, each text in a row of its own."""
        return self.plain.evaluate()
