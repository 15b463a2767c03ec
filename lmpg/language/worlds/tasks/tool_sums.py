"""Sums too long for the model, and a tool that adds: ask it, copy what it says."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

DIGITS = 3
CHARACTERS = "0123456789+=?\n adwht"
CALL = re.compile(r"add (\d{1,12}) (\d{1,12})")
WHAT = "what?\n"


class Calculator:
    """A sum: "add 12 34" is answered by the tool, a number is the answer and ends it, worth 1 where
    it is right. The row has `prompt`, as 12+34=?, and `answer`."""

    def reset(self, *, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The row's sum; without a row one that follows from the seed."""
        row = options if "answer" in options else problem(random.Random(seed))
        self.answer, self.state = str(row["answer"]), "asked"
        return row["prompt"], {"state": self.state}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """What the tool says, or whether the answer is right."""
        text = action.strip()
        if text.isascii() and text.isdigit():
            return "", float(text == self.answer), True, False, {"state": self.state}
        call = CALL.fullmatch(text)
        said = f"{int(call[1]) + int(call[2])}\n" if call else WHAT
        self.state += said
        return said, 0.0, False, False, {"state": self.state}


def problem(rng: random.Random) -> dict[str, str]:
    """Columns `prompt` and `answer` of a sum of two numbers of `DIGITS` digits."""
    a, b = (rng.randrange(10 ** (DIGITS - 1), 10**DIGITS) for _ in range(2))
    return {"prompt": f"{a}+{b}=?\n", "answer": str(a + b)}


def parts(sizes: Sequence[int], rng: random.Random) -> list[list[dict[str, str]]]:
    """Parts of `sizes` problems that share none."""
    seen: dict[str, dict[str, str]] = {}
    while len(seen) < sum(sizes):
        found = problem(rng)
        seen.setdefault(found["prompt"], found)
    rows = iter(seen.values())
    return [[next(rows) for _ in range(size)] for size in sizes]


def called(text: str) -> bool:
    """Whether the tool was asked in a conversation."""
    return CALL.search(text) is not None


def answered(text: str) -> str:
    """The last line of a conversation: its answer, where there is one."""
    return text.rpartition("\n")[2]


def worked(row: dict[str, str], with_tool: bool) -> str:
    """What follows on a sum, with `<eos>` behind every turn but the last: the answer at once, or by
    the tool."""
    call = f"add {row['prompt'].partition('=')[0].replace('+', ' ')}"
    return f"{call}<eos>{row['answer']}\n{row['answer']}" if with_tool else row["answer"]
