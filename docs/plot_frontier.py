"""Draws what each method makes of the KL it spends: gold against KL, mean over its seeds.

python docs/plot_frontier.py OUT.png METRIC RUN_FOLDER…   (runs of one method share their name)
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import numpy as np
from plot_curves import LABELS, curve

mpl.use("Agg")
import matplotlib.pyplot as plt

MARKERS = "osD^vP*X<>hp8"


def frontiers(metric: str, runs: list[Path]) -> dict[str, np.ndarray]:
    """For each method [evaluations, 2]: mean KL and mean metric over its runs."""
    by_name: dict[str, list[np.ndarray]] = defaultdict(list)
    for run in runs:
        name = json.loads((run / "summary.json").read_text(encoding="utf-8"))["name"]
        by_name[name].append(np.array([curve(run, "kl")[1], curve(run, metric)[1]]).T)
    return {name: np.mean(points, axis=0) for name, points in by_name.items()}


def draw(out: Path, metric: str, runs: list[Path]) -> None:
    """One line per method, a marker per evaluation, the last one larger and named."""
    figure, axis = plt.subplots(figsize=(8.2, 4.8))
    colours = plt.get_cmap("tab20")
    for i, (name, points) in enumerate(frontiers(metric, runs).items()):
        colour, marker = colours(i % 20), MARKERS[i % len(MARKERS)]
        axis.plot(*points.T, "-", color=colour, lw=1.2, marker=marker, ms=3.5)
        axis.plot(*points[-1], marker, color=colour, ms=8, mec="black", mew=0.6, label=name)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlim(left=0)
    axis.set_xticks(ticks := [0, 1, 2, 5, 10, 20, 50], [str(tick) for tick in ticks])
    axis.set_xlabel(LABELS["kl"])
    axis.set_ylabel(LABELS.get(metric, metric))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), sys.argv[2], [Path(run) for run in sys.argv[3:]])
