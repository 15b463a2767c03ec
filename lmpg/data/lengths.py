"""What happens to rows that can't be used: too long, or without content; all counted."""

from __future__ import annotations

from collections import Counter

from lmpg.data.tokenizing import cut_left
from lmpg.sections import UserError


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
            raise UserError(
                f"{where}: the {self.what} has {len(ids)} tokens, but only {self.max_tokens} "
                "fit into the model's context beside the response. Use --data.overlong skip "
                "or truncate-left, or a smaller --sampling.max-new-tokens."
                if self.what == "prompt"
                else f"{where}: the {self.what} has {len(ids)} tokens, but the model's context "
                f"holds {self.max_tokens}. Use --data.overlong skip or truncate-left."
            )
        if self.overlong == "skip":
            self.skipped["overlong"] += 1
            return None
        self.truncated += 1
        return cut_left(ids, self.max_tokens, self.start)
