"""What an engine is: a decoder with a cache, and what turns its hidden states into logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Decoder(Protocol):
    """Hidden states after the last token of rows, from a cache that it keeps."""

    def prefill(self, ids_PL: Tensor, lengths_P: Tensor, prompt_R: Tensor) -> Tensor:
        """Reads prompts and opens rows, [R, D]."""
        ...

    def advance(self, tokens_R: Tensor) -> Tensor:
        """Appends a token to each row, [R, D]."""
        ...

    def keep(self, holes: Tensor, tail: Tensor, num_rows: int) -> None:
        """The rows `tail` move to the places `holes`, the first num_rows go on."""
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
