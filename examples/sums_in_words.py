"""Sums asked in words, for a chat model: writes the data of the example in docs/real_models.md.

`python examples/sums_in_words.py FOLDER` writes `train.jsonl` and `held_out.jsonl`. No sum stands
in both, and neither does its twin (58 + 37 for 37 + 58).
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

HELD_OUT = 256


def rows() -> list[list[dict]]:
    """All sums of two numbers of two digits, shuffled; a sum and its twin are one entry."""
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    random.Random(0).shuffle(pairs)
    return [[row(*twin) for twin in sorted({(a, b), (b, a)})] for a, b in pairs]


def row(a: int, b: int) -> dict:
    """A chat with the question, and the answer that rewards are given as `answer`."""
    question = f"What is {a} + {b}? Answer with the number only."
    return {"prompt": [{"role": "user", "content": question}], "answer": str(a + b)}


def main() -> None:
    """Write both files."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    sums = rows()
    held_out = [twins[0] for twins in sums[:HELD_OUT]]
    train = [row for twins in sums[HELD_OUT:] for row in twins]
    random.Random(1).shuffle(train)
    for name, part in {"held_out": held_out, "train": train}.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
