"""Draws learning curves of gymnasium runs: a panel per environment, a line per method.

python docs/plot_gym_curves.py OUT.png RUN_FOLDER…   (the mean of the seeds, their range shaded)
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import numpy as np
import yaml

mpl.use("Agg")
import matplotlib.pyplot as plt

COLORS = {
    "ppo": "#3465a4",
    "trpo": "#cc0000",
    "a2c": "#4e9a06",
    "reinforce": "#888a85",
    "natural_actor_critic": "#75507b",
    "natural_policy_gradient": "#f57900",
}
COLUMNS, POINTS = 3, 200
Curve = tuple[np.ndarray, np.ndarray]


def curve(run: Path) -> Curve:
    """Environment steps, and the mean return of the latest training episodes."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row.get("episode/return_mean") is not None]
    return (
        np.array([row["num_steps"] for row in rows], float),
        np.array([row["episode/return_mean"] for row in rows]),
    )


def grouped(runs: list[Path]) -> dict[str, dict[str, list[Curve]]]:
    """Curves by environment, then by method."""
    found: dict[str, dict[str, list[Curve]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        found[settings["env"]["id"]][settings["algorithm"]["name"]].append(curve(run))
    return found


def draw_panel(axis: plt.Axes, title: str, methods: dict[str, list[Curve]]) -> None:
    """One environment; seeds are brought to the same steps by linear interpolation."""
    for name, curves in methods.items():
        grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), POINTS)
        returns = np.array([np.interp(grid, x, y) for x, y in curves])
        axis.fill_between(
            grid, returns.min(0), returns.max(0), color=COLORS[name], alpha=0.15, lw=0
        )
        axis.plot(grid, returns.mean(0), color=COLORS[name], lw=1.5, label=name_of(name))
    axis.set_title(title, fontsize=10)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k")
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False)


def name_of(method: str) -> str:
    """The method as one writes it."""
    short = method in ("ppo", "a2c", "trpo", "reinforce")
    return method.upper() if short else method.replace("r_c", "r-c").replace("_", " ")


def draw(out: Path, runs: list[Path]) -> None:
    """All panels."""
    found = grouped(runs)
    lines = -(-len(found) // COLUMNS)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=(10, 2.7 * lines), squeeze=False)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis, (env, methods) in zip(axes.flat, found.items()):
        draw_panel(axis, env, methods)
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("return of sampled actions in training", fontsize=9)
    figure.tight_layout()
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]])
