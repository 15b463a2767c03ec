"""What the pages print as code, and the command lines in it.

A block that tests cannot run has `<!-- not run: REASON -->` in the line above it. It must still
parse, unless it is an installation.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCED = re.compile(r"(?:^<!-- not run: ([^>]+) -->\n)?^( *)```(\w*)\n(.*?)^ *```", re.S | re.M)
STARTS = ("lmpg ", "python ", "accelerate ", "torchrun ", "--")
PLACEHOLDERS = {
    "$MODEL": "my-model",
    "MODEL": "my-model",
    "RUN": "runs/run",
    "RUNS": "runs/run",
    "FOLDER": "runs/run",
    "OUT.png": "out.png",
    "NAME": "ppo",
    "STAGE": "sft",
    "ENV": "CartPole-v1",
    "SEED": "1",
    "METHOD_ENV": "ppo_cartpole",
    "KIND": "shared",
}
"""What the pages leave open, and an example of it."""


class Block(NamedTuple):
    """A block of code: its page, its language (`text`: indented), why it cannot run, its text."""

    page: Path
    language: str
    not_run: str
    text: str


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, fenced and indented ones, in their order."""
    text = page.read_text(encoding="utf-8")
    found = [
        (m.start(), Block(page, m[3], m[1] or "", re.sub(f"^{m[2]}", "", m[4], flags=re.M)))
        for m in FENCED.finditer(text)
    ]
    rest = FENCED.sub(lambda m: " \n" * m[0].count("\n") + " " * 9, text)
    for m in re.finditer(r"(?:^    \S.*\n(?: {4}.*\n)*)+", rest, re.M):
        found.append((m.start(), Block(page, "text", "", re.sub("^    ", "", m[0], flags=re.M))))
    return [block for _, block in sorted(found, key=lambda pair: pair[0])]


def spans(page: Path) -> list[str]:
    """Commands in the page's sentences, in backticks, that have a flag; and installations."""
    rest = FENCED.sub("", page.read_text(encoding="utf-8"))
    joined = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
    return [
        span
        for span in joined
        if span.startswith("pip install") or (span.startswith(STARTS[:-1]) and " --" in span)
    ]


def commands(block: Block) -> list[list[str]]:
    """The words of each command line in a shell block, or of those in an indented one.

    Without comments and redirections; `&&` and `|` divide. "…" at the end: it is not the whole.
    """
    if block.language not in ("bash", "text"):
        return []
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "text":
        lines = [line for line in lines if line.startswith(STARTS)]
    return [words for line in lines for words in divided(line)]


def divided(line: str) -> list[list[str]]:
    """The words of the commands in one line, with an example for whatever is left open."""
    reader = shlex.shlex(line, posix=True, punctuation_chars="&|<>;")
    reader.whitespace_split = True
    found: list[list[str]] = [[]]
    skipped = part = False
    for word in reader:
        if set(word) <= set("&|;"):
            found.append([])
        elif set(word) <= set("<>"):
            skipped = True  # the file behind it
        elif skipped:
            skipped = False
        elif word.endswith("…"):
            part = True
        else:
            found[-1].append(PLACEHOLDERS.get(word, word))
    return [[*words, "…"] if part else words for words in found if words]
