"""Stop strings: where in its response each row of a batch has written one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from lmpg.language.sampling.samples import DistinctPrompts

Texts = Callable[[list[list[int]], list[list[int]]], list[str]]
"""The texts of some token ids as they continue others."""
NewSearch = Callable[[DistinctPrompts], "StopSearch"]
UNFINISHED = "\ufffd"
"""What a part of a character is decoded as."""
_PER_CHARACTER = 4
"""Tokens at most that write a character: a byte each."""
_CONTEXT = 8
"""Tokens decoded in front, enough for decoders that treat a text's first one otherwise."""


def stopping(
    strings: tuple[str, ...],
    texts: Texts,
    eos_token_ids: Collection[int],
    tell: Callable[[str], object] | None = None,
) -> NewSearch:
    """What begins the search for `strings` in a batch's responses; with `tell`, as `ReadAlong`."""

    @cache
    def may_complete(token: int) -> bool:
        """Whether the token can hold the end of a stop string."""
        written = texts([[]], [[token, token]])[0]  # what a text begins with may be stripped
        return UNFINISHED in written or any(string[-1] in written for string in strings)

    parts = strings, texts, may_complete, frozenset(eos_token_ids)
    return partial(StopSearch, *parts) if tell is None else partial(ReadAlong, tell, *parts)


class StopSearch:
    """Reads the responses of a batch while they are sampled: `read`, then `last_tokens`.

    A row's response ends with the token in which a stop string is complete, whatever else that
    token holds. It depends on the row's tokens alone, not on how many are read at a time. The
    string must lie in the response; what of it stands at the prompt's end does not count.
    """

    def __init__(
        self,
        strings: tuple[str, ...],
        texts: Texts,
        may_complete: Callable[[int], bool],
        eos_token_ids: frozenset[int],
        prompts: DistinctPrompts,
    ):
        self._strings, self._texts, self._may_complete = strings, texts, may_complete
        self._eos = eos_token_ids
        self._window = _PER_CHARACTER * max(map(len, strings), default=0) + _CONTEXT
        ends = [ids[-min(n, _CONTEXT) :] for ids, n in zip(*map(Tensor.tolist, _parts(prompts)))]
        self._before = [ends[i] for i in prompts.prompt_B.tolist()]
        self._written: list[list[int]] = [[] for _ in self._before]
        self._over = [False] * len(self._before)
        self._stopped = [False] * len(self._before)

    def read(self, rows: list[int], tokens_SR: list[list[int]]) -> list[bool]:
        """The next S tokens of R rows; returns which of these rows are over, by a stop string or an
        EOS token. Rows that the batch does not have are over."""
        return [self._read(row, tokens) for row, tokens in zip(rows, zip(*tokens_SR))]

    def last_tokens(self, num_steps: int) -> Tensor:
        """The index of the token in which each row's stop string is complete, [B] on the CPU;
        `num_steps` where there is none."""
        pairs = zip(self._written, self._stopped)
        return torch.tensor([len(ids) - 1 if stopped else num_steps for ids, stopped in pairs])

    def _read(self, row: int, tokens: tuple[int, ...]) -> bool:
        if row >= len(self._over):
            return True
        for token in tokens:
            if self._over[row]:
                break
            self._written[row].append(token)
            if token in self._eos:
                self._over[row] = True
            elif self._may_complete(token) and self._is_complete(row):
                self._over[row] = self._stopped[row] = True
        return self._over[row]

    def _is_complete(self, row: int) -> bool:
        """Whether the newest tokens hold a stop string; earlier ones do not, or it were over."""
        written = self._written[row]
        start = max(0, len(written) - self._window)
        before = (self._before[row] + written[:start])[-_CONTEXT:]
        text = self._texts([before], [written[start:]])[0]
        return any(string in text for string in self._strings)


class ReadAlong(StopSearch):
    """A search that tells the text of the batch's first response piece by piece, as it comes."""

    def __init__(self, tell: Callable[[str], object], *search: Any):
        """tell: is given each new piece. search: as StopSearch takes it."""
        super().__init__(*search)
        self._tell, self._told = tell, ""

    def read(self, rows: list[int], tokens_SR: list[list[int]]) -> list[bool]:
        """As StopSearch does; a character of which only a part is written waits for the rest."""
        over = super().read(rows, tokens_SR)
        ids = [token for token in self._written[0] if token not in self._eos]
        text = self._texts([self._before[0]], [ids])[0]
        if not text.endswith(UNFINISHED) and text != self._told:
            self._tell(text[len(self._told) :])
            self._told = text
        return over


def _parts(prompts: DistinctPrompts) -> tuple[Tensor, Tensor]:
    return prompts.ids_PL, prompts.lengths_P
