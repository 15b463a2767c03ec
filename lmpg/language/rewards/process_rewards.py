"""Process rewards: the steps of a completion, and the token in which each of them ends."""

from __future__ import annotations

from lmpg.language.data.tokenizing import Decode, token_widths


def pieces(text: str, separator: str) -> list[str]:
    """The steps of `text`, each with the separator that ends it; none in an empty text."""
    parts = text.split(separator)
    return [part + separator for part in parts[:-1]] + [part for part in parts[-1:] if part]


def step_ends(text: str, ids: list[int], separator: str, decode: Decode) -> list[int]:
    """The index of the last token of each step of `text`.

    A step ends with the token in which its separator ends, even if the next step begins in that
    token; a last step without a separator ends with the response.
    """
    widths = token_widths(text, ids, decode)
    ends, token, written, end = [], 0, widths[0], 0
    for piece in pieces(text, separator):
        end += len(piece)
        while written < end and token < len(ids) - 1:
            token += 1
            written += widths[token]
        ends.append(token if piece.endswith(separator) else len(ids) - 1)
    return ends
