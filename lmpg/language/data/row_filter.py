"""Which rows can be used: those that are too long or empty are cut, left out or refused."""

from __future__ import annotations

from collections import Counter

from lmpg.language.data.tokenizing import cut_left
from lmpg.settings.section import UserError


class RowFilter:
    """Fits the rows of a data set into the model's context, and counts those that don't fit.

    max_tokens: room for a row. overlong: what becomes of longer ones, see `DataSettings.overlong`.
    bos_ids: stay in front of a row that is cut. what: what the room is for, in messages.
    skipped: number of rows left out, by reason (`empty`, `overlong`, ...).
    num_cut: number of rows cut on the left.
    """

    def __init__(self, max_tokens: int, overlong: str, bos_ids: list[int], what: str = "text"):
        self.max_tokens = max_tokens
        self.overlong = overlong
        self.bos_ids = bos_ids
        self.what = what
        self.skipped: Counter[str] = Counter()
        self.num_cut = 0

    def fitted(self, ids: list[int], where: str) -> list[int] | None:
        """`ids`, cut to `max_tokens` if need be, or None if the row is skipped."""
        if not ids:
            self.skipped["empty"] += 1
            return None
        if len(ids) <= self.max_tokens:
            return ids
        if self.overlong == "error":
            raise UserError(f"{where}: {self._too_long(len(ids))}")
        if self.overlong == "skip":
            self.skipped["overlong"] += 1
            return None
        self.num_cut += 1
        return cut_left(ids, self.max_tokens, self.bos_ids)

    def fitted_prompt(self, prompt: list[int], answer_length: int, where: str) -> list[int] | None:
        """The part of `prompt` that fits before an answer of so many tokens, which is never cut;
        None if the row is skipped."""
        if len(prompt) + answer_length <= self.max_tokens:
            return prompt
        room = self.max_tokens - answer_length
        if self.overlong == "truncate-left" and room <= len(self.bos_ids):
            self.skipped["overlong answer"] += 1
            return None
        if self.overlong == "truncate-left":
            self.num_cut += 1
            return cut_left(prompt, room, self.bos_ids)
        if self.overlong == "skip":
            self.skipped["overlong"] += 1
            return None
        raise UserError(f"{where}: {self._too_long(len(prompt) + answer_length)}")

    def not_empty(self, examples: list, num_rows: int, source: str) -> list:
        """`examples`; raises if there are none, saying what became of the rows."""
        if not examples:
            raise UserError(f"{source} has no usable row: of {num_rows}, {reasons(self.skipped)}.")
        return examples

    def _too_long(self, length: int) -> str:
        fix = "data.overlong is 'error': use --data.overlong skip or truncate-left"
        if self.what != "prompt":
            return (
                f"the {self.what} has {length} tokens, but the model's context holds "
                f"{self.max_tokens}. {fix}."
            )
        return (
            f"the prompt has {length} tokens, but only {self.max_tokens} fit into the model's "
            f"context beside the response. {fix}, or a smaller --sampling.max-new-tokens."
        )


def reasons(skipped: dict[str, int]) -> str:
    """Such as "2 empty, 1 overlong skipped"."""
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items()) + " skipped"
