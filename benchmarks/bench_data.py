"""What many rows cost before the first step: seconds and memory of reading and tokenising them.

Rows are made on the spot, as JSON lines of about 220 bytes (50 tokens of SmolLM2). Each case runs
in a process of its own, after the tokenizer is loaded. `wall` and `cpu` are seconds, GB how far the
peak of memory rises above what the process held before. A tokenizer uses all cores for many texts
at once, unless TOKENIZERS_PARALLELISM is false: then cpu is more than wall.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from transformers import AutoTokenizer

from lmpg.language.data.policy_pairs import load_labelled_completions, load_preference_pairs
from lmpg.language.data.prompts import load_prompts
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.texts import load_texts

WORDS = ["the", "of", "a", "model", "learns", "to", "write", "sums", "from", "rows", "in", "tables"]
LOADERS = {
    "prompts": load_prompts,
    "chats": load_prompts,
    "texts": load_texts,
    "pairs": load_preference_pairs,
    "kto": load_labelled_completions,
}
HEADER = "kind          rows    wall     cpu      GB"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", required=True, help="folder of a tokenizer, or a Hub name")
    parser.add_argument("--rows", nargs="+", type=int, default=[200_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", choices=tuple(LOADERS), default=list(LOADERS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_rows(path: Path, count: int, kind: str) -> None:
    """JSON lines with the columns that the kind of data needs."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            prompt = " ".join(
                [f"What is {i} + {draw.randrange(1000)}?", *draw.choices(WORDS, k=30)]
            )
            row = {"prompt": prompt, "answer": str(i), "level": i % 7}
            if kind == "texts":
                row = {"text": prompt}
            elif kind == "pairs":
                row |= {"chosen": f" It is {i}.", "rejected": f" It is {i + 1}."}
            elif kind == "kto":
                row |= {"completion": f" It is {i}.", "label": i % 2}
            file.write(json.dumps(row) + "\n")


def measure(path: str, kind: str, tokenizer_path: str) -> str:
    """The figures of one case, in this process."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    settings = DataSettings(path=path, chat=kind == "chats")
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    split = LOADERS[kind](settings, tokenizer, 512)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    count = len(split.train) + len(split.held_out)
    gb = (after.ru_maxrss - before.ru_maxrss) / 1e6
    return f"{kind:8}{count:10,}{wall:8.1f}{cpu:8.1f}{gb:8.2f}"


def main() -> None:
    """Print the table."""
    args = arguments()
    if args.child:
        print(measure(args.child, args.kinds[0], args.tokenizer))
        return
    print(HEADER)
    for kind in args.kinds:
        for count in args.rows:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "rows.jsonl"
                write_rows(path, count, kind)
                command = [sys.executable, __file__, "--child", str(path), "--kinds", kind]
                command += ["--tokenizer", args.tokenizer]
                found = subprocess.run(command, check=True, capture_output=True, text=True)
                print(found.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
