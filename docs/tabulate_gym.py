"""Prints the Markdown table of scores in gymnasium environments: a row per method and environment.

python docs/tabulate_gym.py RUN_FOLDER…   (finished runs of scripts/train_gym.py)
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import yaml

HEADS = (
    "environment",
    "method",
    "steps",
    "seeds",
    "mean",
    "worst seed",
    "std over episodes",
    "rl-zoo PPO",
    "CleanRL PPO",
    "seconds of the fastest",
)
# (deterministic evaluation after training with the zoo's tuned settings, return of training)
PUBLISHED = {
    "CartPole-v1": ("500 (100k)", "490 ± 6 (500k)"),
    "Acrobot-v1": ("−73.5 ± 18 (1M)", "−86.4 ± 1.3 (500k)"),
    "MountainCar-v0": ("−110 ± 19 (1M)", "−200 (unsolved)"),
    "MountainCarContinuous-v0": ("88.3 ± 2.6 (20k)", "–"),
    "Pendulum-v1": ("−172 ± 104 (100k)", "–"),
    "LunarLander-v3": ("242 ± 32 (1M)", "–"),
    "HalfCheetah-v5": ("5819 (1M, tuned)", "1443 (1M)"),
    "Hopper-v5": ("2410 (1M, tuned)", "2383 (1M)"),
    "Walker2d-v5": ("3479 (1M, tuned)", "2288 (1M)"),
}

Runs = list[tuple[dict, dict]]


def grouped(folders: list[Path]) -> dict[tuple[str, str], Runs]:
    """Settings and summary of each run, by environment and method, in the order of PUBLISHED."""
    found: dict[tuple[str, str], Runs] = defaultdict(list)
    for folder in folders:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        found[settings["env"]["id"], settings["algorithm"]["name"]].append((settings, summary))
    order = list(PUBLISHED)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0][0])))


def row(env: str, method: str, runs: Runs) -> str:
    """Mean and worst of the seeds' mean returns. Other work may have slowed runs down, so that the
    fastest says most about the time they take."""
    returns = [summary["after"]["return_mean"] for _, summary in runs]
    spread = sum(summary["after"]["return_std"] for _, summary in runs) / len(runs)
    seconds = min(summary["seconds"]["this_process"] for _, summary in runs)
    steps = {summary["num_steps"] for _, summary in runs}
    seeds = sorted(settings["run"]["seed"] for settings, _ in runs)
    if len(steps) > 1 or seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        raise SystemExit(f"{env}, {method}: runs of {steps} steps and seeds {seeds} in one row")
    digits = 0 if abs(returns[0]) >= 1000 else 1
    scores = [signed(x, digits) for x in (sum(returns) / len(returns), min(returns))]
    cells = [env, name_of(method), f"{steps.pop():,}", f"{seeds[0]}–{seeds[-1]}", *scores]
    cells += [f"{spread:.{digits}f}", *PUBLISHED[env], f"{seconds:.0f}"]
    return "| " + " | ".join(cells) + " |"


def name_of(method: str) -> str:
    """The method as one writes it."""
    short = method in ("ppo", "a2c", "trpo", "reinforce")
    return method.upper() if short else method.replace("r_c", "r-c").replace("_", " ")


def signed(x: float, digits: int) -> str:
    """A number with the minus sign of the text around it."""
    return f"{x:.{digits}f}".replace("-", "−")


if __name__ == "__main__":
    print("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|")
    for (env_id, name), done in grouped([Path(run) for run in sys.argv[1:]]).items():
        print(row(env_id, name, done))
