"""Film reviews (SST-2): writes the data of three examples in docs/real_models.md.

`python examples/film_reviews.py SST2 FOLDER` reads `train.jsonl`, `dev.jsonl` and `test.jsonl` of
SST2 (rows of `text` and `label`, 1 where the review is positive) and writes

- `sentiment.jsonl`, `sentiment_held_out.jsonl`: texts and labels for a reward model;
- `openings.jsonl`, `openings_held_out.jsonl`: first words of other reviews, as prompts;
- `pairs.jsonl`, `pairs_held_out.jsonl`: the wish for a good or a bad review, with one of that kind
  as the chosen answer and one of the other kind as the rejected one;
- `words.json`: how much more often each word stands in good reviews than in bad ones, counted in
  reviews that no other file has. `word_odds` scores by it: a gold measure that training never sees.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from functools import cache
from pathlib import Path

OPENING = 4  # words
WISHES = {
    1: "Write one sentence of a review that praises a film.",
    0: "Write one sentence of a review that pans a film.",
}


def word_odds(prompts: list[str], completions: list[str], *, path: str) -> list[float]:
    """Log odds that a review is positive by its words alone (naive Bayes, even prior).

    Args:
        path: the `words.json` that this script wrote.
    """
    odds = read_odds(path)
    texts = [prompt + completion for prompt, completion in zip(prompts, completions)]
    return [sum(odds.get(word, 0.0) for word in set(text.lower().split())) for text in texts]


@cache
def read_odds(path: str) -> dict[str, float]:
    """Log odds by word."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def counted_odds(rows: list[dict]) -> dict[str, float]:
    """Log odds of each word between positive and negative rows, each count raised by one."""
    good, bad = ([row for row in rows if row["label"] == label] for label in (1, 0))
    in_good, in_bad = (
        Counter(w for row in x for w in set(row["text"].split())) for x in (good, bad)
    )
    smaller = (len(bad) + 2) / (len(good) + 2)
    return {
        word: math.log((in_good[word] + 1) / (in_bad[word] + 1) * smaller)
        for word in sorted(in_good | in_bad)
    }


def openings(rows: list[dict]) -> list[dict]:
    """The first words of reviews that are at least twice as long, each opening once."""
    words = [row["text"].split() for row in rows]
    firsts = [" ".join(each[:OPENING]) for each in words if len(each) >= 2 * OPENING]
    return [{"prompt": first} for first in dict.fromkeys(firsts)]


def pairs(rows: list[dict]) -> list[dict]:
    """A wish, a review that fulfils it, and one that does the opposite; good and bad in turn."""
    good, bad = ([row["text"] for row in rows if row["label"] == label] for label in (1, 0))
    both = enumerate(zip(good, bad))
    return [pair(0, bad, good) if i % 2 else pair(1, good, bad) for i, (good, bad) in both]


def pair(label: int, chosen: str, rejected: str) -> dict:
    """A row of preferences in chat form."""
    return {
        "prompt": [{"role": "user", "content": WISHES[label]}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def main() -> None:
    """Write all files."""
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    train, dev, test = (read(source / f"{name}.jsonl") for name in ("train", "dev", "test"))
    random.Random(0).shuffle(train)
    labelled, others = train[:4000], train[4000:]
    files = {
        "sentiment": labelled,
        "sentiment_held_out": dev,
        "openings": openings(others),
        "openings_held_out": openings(dev),
        "pairs": pairs(train),
        "pairs_held_out": pairs(dev),
    }
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "words.json").write_text(json.dumps(counted_odds(test)), encoding="utf-8")


def read(path: Path) -> list[dict]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
