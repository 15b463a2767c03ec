"""Prints a Markdown table of runs: a row per method, mean and worst of its seeds.

python docs/results_table.py METRIC[,METRIC…] RUN_FOLDER…   (the first one before → after)
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path


def summaries(runs: list[Path]) -> dict[str, list[dict]]:
    """The summaries of each method's runs, in the order in which the methods come."""
    found: dict[str, list[dict]] = defaultdict(list)
    for run in runs:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        found[summary["name"]].append(summary)
    return found


def row(name: str, metrics: list[str], runs: list[dict]) -> str:
    """Each seed's headline, the mean and the worst gain, the means of the other metrics."""
    first, *others = metrics
    seeds = ", ".join(f"{r['before'][first]:.3f} → {r['after'][first]:.3f}" for r in runs)
    gains = [r["after"][first] - r["before"][first] for r in runs]
    means = [sum(r["after"][m] for r in runs) / len(runs) for m in others]
    seconds = sum(r["seconds"]["this_process"] for r in runs) / len(runs)
    cells = [name, seeds, f"{sum(gains) / len(gains):+.3f}", f"{min(gains):+.3f}"]
    return " | ".join(["", *cells, *(f"{x:.2f}" for x in means), f"{seconds:.0f}", ""]).strip()


if __name__ == "__main__":
    wanted = sys.argv[1].split(",")
    heads = ["method", f"{wanted[0]}, each seed", "mean gain", "worst gain", *wanted[1:], "seconds"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for method, done in summaries([Path(run) for run in sys.argv[2:]]).items():
        print(row(method, wanted, done))
