"""Measures the policy gradient's estimators where the gradient itself can be calculated.

python docs/estimators.py [NUM_EPISODES]   (prints the table, draws figures/bias_variance.png)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np

from lmpg.classic.estimators import lambda_advantages
from lmpg.classic.exact.comparison import (
    HORIZON,
    LAMBDAS,
    Setting,
    compared,
    credits_of,
    off_policy_credits_of,
    setting,
)
from lmpg.classic.exact.measuring import Quality
from lmpg.classic.exact.sampling import sampled_episodes

mpl.use("Agg")
import matplotlib.pyplot as plt

FIGURE = Path(__file__).parent / "figures" / "bias_variance.png"
HEADS = ("estimator", "bias", "in standard errors", "variance", "CPU seconds per 10⁵")
GRID = np.linspace(0, 1, 21)
CRITICS = {"exact V": "tab:blue", "wrong V": "tab:red"}


def table(s: Setting, num_episodes: int) -> str:
    """A Markdown row per estimator: |mean − truth|, the same in standard errors, trace, time."""
    on = compared(s, credits_of(s), s.pi_SA, num_episodes, seed=1)
    off = compared(s, off_policy_credits_of(s), s.mu_SA, num_episodes, seed=2)
    lines = ["| " + " | ".join(HEADS) + " |", "|---" + "|---:" * (len(HEADS) - 1) + "|"]
    for name, (found, seconds) in {**on, **off}.items():
        errors = found.bias / found.standard_error
        shown = f"**{errors:.1f}**" if errors > 5 else f"{errors:.1f}"
        row = (name, f"{found.bias:.4f}", shown, f"{found.variance:.2f}", f"{seconds:.3f}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def over_lambda(s: Setting, V_S: np.ndarray, num_episodes: int) -> list[Quality]:
    """Of the λ in `GRID`, over the same episodes."""
    credits = {
        f"{lam}": lambda e, lam=lam: lambda_advantages(e, V_S, s.mdp.gamma, lam) for lam in GRID
    }
    found = compared(s, credits, s.pi_SA, num_episodes, seed=3)
    return [quality for quality, _ in found.values()]


def draw(s: Setting, num_episodes: int) -> None:
    """Bias against variance, and what both together cost a batch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    for name, colour in CRITICS.items():
        found = over_lambda(s, s.V_S if name == "exact V" else s.wrong_S, num_episodes)
        bias, variance = np.array([(q.bias, q.variance) for q in found]).T
        left.plot(variance, bias, color=colour, label=name)
        for lam in LAMBDAS:
            i = int(np.argmin(abs(GRID - lam)))
            left.plot(variance[i], bias[i], "o", ms=4, color=colour)
            above = (4, 4) if name == "wrong V" else (-3, 7)
            if name == "wrong V" or lam not in (0.25, 0.5):  # they lie too close to 0
                left.annotate(f"{lam:g}", (variance[i], bias[i]), above, textcoords="offset points")
        for batch, style in ((10, ":"), (100, "--"), (1000, "-")):
            error = np.sqrt(bias**2 + variance / batch)
            best = error.argmin()
            label = f"{name}, {batch} episodes"
            right.plot(GRID, error, style, color=colour, label=label)
            right.plot(GRID[best], error[best], "o", ms=5, color=colour)
    left.set_xlabel("variance of one episode's estimate (trace)")
    left.set_ylabel("bias (length of the vector)")
    left.set_title("each point a λ")
    right.set_xlabel("λ")
    right.set_ylabel("root mean squared error of a batch")
    right.set_title("the wrong V's best λ (dots) grows with the batch")
    right.set_yscale("log")
    right.legend(fontsize=8, frameon=False, ncols=2, loc="upper center")
    left.legend(frameon=False)
    right.set_ylim(top=1.6)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=130)


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    the = setting()
    start = time.process_time()
    sampled_episodes(the.mdp, the.pi_SA, 100_000, HORIZON, np.random.default_rng(0))
    seconds = time.process_time() - start
    print(table(the, wanted))
    print(f"\nLength of the gradient {np.linalg.norm(the.truth_OA):.4f};", end=" ")
    print(f"sampling 10⁵ episodes {seconds:.2f} s of CPU, for each alike.")
    draw(the, min(wanted, 200_000))
