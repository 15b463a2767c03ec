"""Process rewards: the steps of a completion, and the token in which each of them ends."""

from __future__ import annotations

from collections.abc import Callable

# The text of the second ids as they continue the first.
Decode = Callable[[list[int], list[int]], str]
UNFINISHED, MOST_BYTES = "\ufffd", 4  # what a part of a character is decoded as
CONTEXT = 8  # tokens decoded in front, enough for decoders that treat a text's first one otherwise


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


def token_widths(text: str, ids: list[int], decode: Decode) -> list[int]:
    """How many characters of `text` each token writes; a character that spans several tokens counts
    for the last of them."""
    if not ids:  # of a row that its environment lost before the first turn
        return []
    widths = [0] * len(ids)
    first, _ = _whole(ids, 0, decode)
    end = first
    while end + 1 < len(ids):
        end, written = _whole(ids, end + 1, decode)
        widths[end] = len(written)
    # without anything in front it may be decoded otherwise than it stands in the text
    widths[first] = len(text) - sum(widths)
    return widths


def _whole(ids: list[int], start: int, decode: Decode) -> tuple[int, str]:
    """The first token after which those from `start` on are whole characters, and their text."""
    before = ids[max(0, start - CONTEXT) : start]
    for end in range(start, min(start + MOST_BYTES, len(ids))):
        written = decode(before, ids[start : end + 1])
        if not written.endswith(UNFINISHED):
            return end, written
    return start, decode(before, ids[start : start + 1])
