"""Texts that go on from what is cached of them, so that only new tokens are read.

R rows, M columns of new tokens, W of the longest whole text, K heads of keys, E numbers of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmpg.language.models.inputs import pad_left

Stored = list[Tensor]
"""Of one row's first n tokens: each layer's keys and values, [2, K, n, E]."""


@dataclass(frozen=True)
class Unread:
    """Texts of R rows with what is stored of each.

    ids_RM: the tokens that are not (padded left), new_R of each row. lengths_R: tokens of each
    whole text. known: of each row the tokens that are stored.
    """

    ids_RM: Tensor
    new_R: Tensor
    lengths_R: Tensor
    known: list[int]
    stored: list[Stored]

    @staticmethod
    def of(
        texts: Sequence[Sequence[int]],
        known: Sequence[int],
        stored: list[Stored],
        pad: int,
        device: torch.device,
    ) -> Unread:
        """Of each text the first known[r] tokens are stored; one token at least is read again."""
        known = [min(n, len(text) - 1) for n, text in zip(known, texts)]
        new = [text[n:] for n, text in zip(known, texts)]
        counts = torch.tensor([[len(x) for x in new], [len(x) for x in texts]], device=device)
        return Unread(pad_left(new, pad).to(device), counts[0], counts[1], known, stored)

    @property
    def new(self) -> int:
        """Columns of new tokens."""
        return self.ids_RM.shape[1]

    @property
    def width(self) -> int:
        """Columns of whole texts that all end in the last one."""
        return int(self.lengths_R.max())

    def place(self, whole: Tensor, layer: int, ends: Sequence[int]) -> None:
        """Copies a layer's stored keys and values into `whole`, [2, R, K, W, E]; those of row r end
        before column ends[r]."""
        for r, (n, end) in enumerate(zip(self.known, ends)):
            if n:
                whole[:, r, :, end - n : end] = self.stored[r][layer][:, :, :n]
