"""Draws evaluation curves of several runs (seeds of one setting): mean line, range shaded.

python docs/plot_curves.py OUT.png METRIC[,METRIC…] RUN_FOLDER…

A metric as `train/reward` is that of the training steps instead, a mean over five of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

LABELS = {
    "reward": "reward-model score",
    "train/reward": "share of right answers while training",
    "train/rewards/rm/mean": "score of the reward model",
    "train/rewards/word_odds/mean": "gold: log odds of the words",
    "train/objective/kl": "KL to the base (nats per response)",
    "gold": "gold: share positive and grammatical",
    "gold_positive": "gold: share positive",
    "gold_grammatical": "gold: share grammatical",
    "kl": "KL to reference (nats per response)",
    "accuracy": "accuracy on held-out problems",
    "distinct": "share of distinct responses",
    "return_mean": "mean return",
    "guesses": "mean guesses",
    "tool_used": "share of sums for which the tool is asked",
}


def curve(run: Path, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a run's evaluations, with the one before training, or of its steps."""
    if metric.startswith("train/"):
        return smoothed(run, metric.removeprefix("train/"))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    steps, values = [0], [summary["before"][metric]]
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get(f"eval/{metric}") is not None:
            steps.append(row["step"])
            values.append(row[f"eval/{metric}"])
    return steps, values


def smoothed(run: Path, metric: str, window: int = 5) -> tuple[list[int], list[float]]:
    """Steps and values of a metric of training: each the mean of the last `window` steps."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    values = [json.loads(line)[metric] for line in lines]
    means = [float(np.mean(values[max(0, i - window + 1) : i + 1])) for i in range(len(values))]
    return list(range(1, len(values) + 1)), means


def draw(out: Path, metrics: list[str], runs: list[Path]) -> None:
    """One panel per metric."""
    figure, axes = plt.subplots(1, len(metrics), figsize=(3.6 * len(metrics), 2.9), squeeze=False)
    for axis, metric in zip(axes[0], metrics):
        curves = [curve(run, metric) for run in runs]
        steps = curves[0][0]
        values = np.array([y for x, y in curves if x == steps])
        axis.fill_between(steps, values.min(0), values.max(0), color="#3465a4", alpha=0.2, lw=0)
        axis.plot(steps, values.mean(0), color="#3465a4", lw=2)
        axis.set_title(LABELS.get(metric, metric), fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), sys.argv[2].split(","), [Path(run) for run in sys.argv[3:]])
