"""Conversations of a report as HTML: the policy's turns with their rewards, its calls of tools, and
what it was told between them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from lmpg.runs.log_lines import is_number
from lmpg.runs.report.charts import number
from lmpg.runs.report.token_colours import Tokens, framed, marks, visible, with_gap

OPEN = 6
"""Turns at either end of a conversation that are not folded away."""
ENDS = {
    "truncated": "ended by the environment",
    "max_turns": "cut off: max_turns",
    "max_tokens": "cut off: max_tokens",
    "error": "lost",
}
"""What is said of how a conversation ended, where it did not end by itself."""


def conversation(row: Mapping[str, Any], scale: Mapping[str, float]) -> str:
    """The turns of a row of samples.jsonl, in the colours of their tokens where it has them."""
    turns, tokens = row["turns"], row.get("tokens")
    written = _coloured(tokens, scale) if tokens and scale and "turn" in tokens else {}
    blocks = [_turn(turn, k, written) for k, turn in enumerate(turns)]
    if -1 in written:  # what the row ends with, where it was truncated
        blocks.append(f'<div class="told">{written[-1]}</div>')
    if row.get("error"):
        blocks.append(f'<div class="told lost">{escape(str(row["error"]))}</div>')
    return f'<div class="talk">{_folded(blocks)}</div>'


def notes(row: Mapping[str, Any]) -> list[str]:
    """How many turns it took, and what ended it where it did not end by itself."""
    count = len(row["turns"])
    said = ENDS.get(str(row.get("end")))
    return [f"{count} turn{'' if count == 1 else 's'}", *([said] if said else [])]


def text_of(value: Any) -> str:
    """Text as it is, chat messages as `role: content` lines."""
    if isinstance(value, list):
        return "".join(f"{_of(m, 'role', '?')}: {_of(m, 'content', '')}\n" for m in value)
    return "" if value is None else str(value)


def _of(message: Any, key: str, default: str) -> Any:
    return message.get(key, default) if isinstance(message, dict) else message


def _turn(turn: Mapping[str, Any], k: int, written: Mapping[int, str]) -> str:
    """What the policy was told, what it wrote, its calls, and what that was worth."""
    told = written.get(_before(k)) or escape(text_of(turn.get("observation")))
    words = written.get(k) or visible(turn.get("text"))
    reward, calls = turn.get("reward"), turn.get("calls") or []
    paid = f'<b class="paid">{number(reward)}</b>' if is_number(reward) else ""
    above = f'<div class="told">{told}</div>' if told else ""
    below = "".join(f'<div class="call">{escape(_call(call))}</div>' for call in calls)
    return f'{above}<div class="turn"><div class="text">{words}</div>{paid}</div>{below}'


def _call(call: Any) -> str:
    """A call of a tool, as Python would write it."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    arguments = function.get("arguments", {})
    if isinstance(arguments, dict):
        arguments = ", ".join(
            f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items()
        )
    return f"{function.get('name', call)}({arguments})"


def _before(k: int) -> int:
    """The key of what stands before turn k: −2 for the first one, −3 for the second …"""
    return -2 - k


def _coloured(tokens: Tokens, scale: Mapping[str, float]) -> dict[int, str]:
    """The tokens of turn k under k, of what stands before it under `_before(k)`, and under −1 of
    what stands behind the last turn."""
    marked, turns = marks(tokens, scale), tokens["turn"]
    texts = [visible(text) for text in tokens["texts"]]
    parts = [texts[t] if k < 0 else marked[t] for t, k in enumerate(turns)]
    ends = [k >= 0 and turns[t + 1 : t + 2] != [k] for t, k in enumerate(turns)]
    parts = [framed(part) if end else part for part, end in zip(parts, ends)]
    keyed = list(zip(_keys(turns), parts))
    gap = with_gap(tokens, [""] * len(parts))
    if len(gap) > len(parts):
        half = len(parts) // 2
        keyed.insert(half, (keyed[half][0], gap[half]))
    runs = groupby(keyed, key=lambda pair: pair[0])
    return {key: "".join(part for _, part in pairs) for key, pairs in runs}


def _keys(turns: Sequence[int]) -> list[int]:
    """For each token the turn that it belongs to, or what it stands before."""
    keys, following = [], None
    for k in reversed(turns):
        following = k if k >= 0 else following
        keys.append(k if k >= 0 else -1 if following is None else _before(following))
    return keys[::-1]


def _folded(blocks: Sequence[str]) -> str:
    """All blocks, those in the middle of many folded away."""
    if len(blocks) <= 2 * OPEN + 1:
        return "".join(blocks)
    first, middle, last = blocks[:OPEN], blocks[OPEN:-OPEN], blocks[-OPEN:]
    inner = f"<details><summary>{len(middle)} turns in between</summary>{''.join(middle)}</details>"
    return f"{''.join(first)}{inner}{''.join(last)}"
