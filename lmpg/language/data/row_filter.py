"""What happens to rows that can't be used: too long, or without content; all counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized

from lmpg.language.data.tokenizing import cut_left
from lmpg.settings.section import UserError


class Sieve:
    """Lets usable rows through and counts the others.

    skipped: number of rows left out, by reason (`empty`, `overlong`, ...).
    truncated: number of rows cut on the left.
    """

    def __init__(self, max_tokens: int, overlong: str, start: list[int], what: str = "prompt"):
        self.max_tokens = max_tokens
        self.overlong = overlong
        self.start = start
        self.what = what
        self.skipped: Counter[str] = Counter()
        self.truncated = 0

    def fit(self, ids: list[int], where: str) -> list[int] | None:
        """`ids` within `max_tokens`, or None where the row is to be skipped."""
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
        self.truncated += 1
        return cut_left(ids, self.max_tokens, self.start)

    def before(self, prompt: list[int], answer: int, where: str) -> list[int] | None:
        """The part of `prompt` that fits before an answer of so many tokens, which stays whole;
        None where the row is to be skipped."""
        if len(prompt) + answer <= self.max_tokens:
            return prompt
        room = self.max_tokens - answer
        if self.overlong == "truncate-left" and room <= len(self.start):
            self.skipped["overlong answer"] += 1
            return None
        if self.overlong == "truncate-left":
            self.truncated += 1
            return cut_left(prompt, room, self.start)
        if self.overlong == "skip":
            self.skipped["overlong"] += 1
            return None
        raise UserError(f"{where}: {self._too_long(len(prompt) + answer)}")

    def some(self, examples: list, num_rows: int, source: str) -> list:
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


def size_line(
    what: str, train: Sized, held_out: Sized, skipped: dict[str, int], truncated: int
) -> str:
    """Numbers of training and held-out examples and of what was left out or cut."""
    parts = [f"{len(train)} {what} to train on, {len(held_out)} held out"]
    parts += [reasons(skipped)] if skipped else []
    parts += [f"{truncated} cut on the left"] if truncated else []
    return "; ".join(parts)
