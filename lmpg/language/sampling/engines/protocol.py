"""What an engine is: a decoder with a cache, and what turns its hidden states into logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lmpg.language.sampling.engines.stored import Stored, Unread


class Decoder(Protocol):
    """Computes the hidden state after each row's last token; keeps a cache of what came before.

    The rows still going lie in the first places. When rows leave, rows from behind fill the gaps.
    """

    def prefill(self, ids_PL: Tensor, lengths_P: Tensor, prompt_R: Tensor) -> Tensor:
        """Reads P prompts, opens a row for each entry of prompt_R; hidden [R, D] after them."""
        ...

    def advance(self, tokens_R: Tensor) -> Tensor:
        """Appends a token to each row; hidden [R, D] after it."""
        ...

    def keep(self, holes: Tensor, tail: Tensor, num_rows: int) -> None:
        """Moves the rows `tail` to the places `holes`; the first num_rows go on."""
        ...


class KeepingDecoder(Decoder, Protocol):
    """One whose rows can leave with what is cached of them, and go on later."""

    def stored(self, places: list[int]) -> list[Stored] | None:
        """What is cached of the rows in `places`, of each the tokens that it was given so far; None
        where the cache is of a kind that rows cannot be taken out of."""
        ...

    def go_on(self, unread: Unread) -> Tensor:
        """Opens a row for each text, of which only the tokens that are not stored are read; hidden
        [R, D] after each."""
        ...


@dataclass(frozen=True)
class Engine:
    """What turns tokens into logits [R, V] (float32, temperature applied) and values [R].

    drop_share: the share of finished rows from which it pays to let them leave.
    """

    decoder: Decoder
    logits: Callable[[Tensor], Tensor]
    values: Callable[[Tensor], Tensor] | None
    precision: Callable[[], AbstractContextManager]
    drop_share: float
