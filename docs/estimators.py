"""Measures the policy gradient's estimators where the gradient itself can be calculated.

python docs/estimators.py [NUM_EPISODES]   (prints five tables, draws figures/bias_variance.png)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np

from lmpg.gym.classic.exact.comparison import (
    HORIZON,
    LAMBDAS,
    Setting,
    compared,
    credits_of,
    off_policy_credits_of,
    setting,
)
from lmpg.gym.classic.exact.disturbed import disturbed_gradients
from lmpg.gym.classic.exact.estimators import lambda_advantages
from lmpg.gym.classic.exact.gradients import natural_gradient
from lmpg.gym.classic.exact.measuring import Quality, quality
from lmpg.gym.classic.exact.natural_estimates import natural_gradients
from lmpg.gym.classic.exact.reused import moved, surrogate_credits_of
from lmpg.gym.classic.exact.sampled_episodes import sampled_episodes
from lmpg.gym.classic.exact.unequal_lengths import compared_by_reduction
from lmpg.gym.classic.exact.without_critic import credits_without_critic

mpl.use("Agg")
import matplotlib.pyplot as plt

FIGURE = Path(__file__).parent / "figures" / "bias_variance.png"
GRID = np.linspace(0, 1, 21)
CRITICS = {"exact V": "tab:blue", "wrong V": "tab:red"}
GROUP_SIZE = 4
DISTURBANCES, DISTURBANCE = 16, 0.3
NEAR, FAR = 0.003, 0.02
BATCHES = (4, 64)


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Printed as Markdown."""
    print("\n| " + " | ".join(heads) + " |\n|---" + "|---:" * (len(heads) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def marked(q: Quality) -> str:
    """The worst component's error; bold where it is no accident."""
    shown = f"{q.largest_error:.1f}"
    return f"**{shown}**" if q.largest_error > 5 else shown


def of_episodes(s: Setting, num_episodes: int) -> None:
    """Of everything whose credit is made of whole episodes, and of finite differences."""
    found = compared(s, credits_of(s), s.pi_SA, num_episodes, seed=1)
    found |= compared(s, off_policy_credits_of(s), s.mu_SA, num_episodes, seed=2)
    start, rng = time.process_time(), np.random.default_rng(6)
    num_estimates = num_episodes // (2 * DISTURBANCES)
    samples_ND = disturbed_gradients(s, DISTURBANCES, DISTURBANCE, num_estimates, rng)
    seconds = (time.process_time() - start) * 1e5 / num_episodes
    name = f"finite differences, {DISTURBANCES} of size {DISTURBANCE:g}"
    found[name] = quality(samples_ND, s.truth_OA, 2 * DISTURBANCES), seconds
    table(
        ("estimator", "bias", "in standard errors", "variance", "CPU seconds per 10⁵"),
        [
            (name, f"{q.bias:.4f}", marked(q), f"{q.variance:.2f}", f"{cost:.3f}")
            for name, (q, cost) in found.items()
        ],
    )


def of_language_models(s: Setting, num_episodes: int) -> None:
    """Of credit without a critic, at the first pass over a batch."""
    credits = credits_without_critic(s, GROUP_SIZE)
    found = compared(s, credits, s.pi_SA, num_episodes, seed=4, group_size=GROUP_SIZE)
    heads = ("credit", "bias", "in standard errors", "length", "angle", "variance", "noise")
    rows = []
    for name, (q, _) in found.items():
        mean = (f"{q.bias:.4f}", marked(q), f"{q.length:.2f}", f"{q.angle:.1f}°")
        rows.append((name, *mean, f"{q.variance:.2f}", f"{q.noise:.2f}"))
    table(heads, rows)


def of_unequal_lengths(num_episodes: int) -> None:
    """Of the first pass where episodes end by themselves, by how steps are weighed."""
    cells: dict[str, tuple[str, ...]] = {}
    for paid in ("first action", "every step"):
        for name, q in compared_by_reduction(paid, num_episodes).items():
            cells[name] = (*cells.get(name, ()), f"{q.angle:.1f}°", f"{q.noise:.1f}")
    heads = ("angle", "noise")
    table(("method: reduction", *heads, *heads), [(name, *row) for name, row in cells.items()])


def of_used_batches(s: Setting, num_episodes: int) -> None:
    """Of surrogates once the policy has moved, little and much."""
    cells: dict[str, tuple[str, ...]] = {}
    for kl in (NEAR, FAR):
        far = moved(s, kl)
        found = compared(far, surrogate_credits_of(far), far.mu_SA, num_episodes, seed=5)
        for name, (q, _) in found.items():
            new = (f"{q.bias:.3f}", f"{q.angle:.1f}°", f"{q.length:.2f}", f"{q.noise:.2f}")
            cells[name] = (*cells.get(name, ()), *new)
        print(f"\nAt {kl} nats the gradient is {np.linalg.norm(far.truth_OA):.2f} long.")
    heads = ("bias", "angle", "length", "noise")
    table(("surrogate", *heads, *heads), [(name, *row) for name, row in cells.items()])


def of_natural_gradients(s: Setting, num_episodes: int) -> None:
    """Against the natural gradient that is calculated, of small batches and large ones."""
    truths = {"gradient": s.truth_OA}
    rows = []
    for size in BATCHES:
        rng = np.random.default_rng(7)
        found = natural_gradients(s, size, num_episodes // size, 0.95, rng)
        for name, samples_KD in found.items():
            truth_OA = truths.get(name, natural_gradient(s.mdp, s.theta_OA))
            q = quality(samples_KD, truth_OA, size)
            share = 100 * q.bias / np.linalg.norm(truth_OA)
            cells = (str(size), f"{share:.2f} %", marked(q), f"{q.angle:.2f}°", f"{q.noise:.2f}")
            rows.append((name, *cells))
    table(("estimate", "batch", "bias", "in standard errors", "angle", "noise"), rows)


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
    of_episodes(the, wanted)
    of_natural_gradients(the, wanted)
    of_language_models(the, wanted)
    of_unequal_lengths(wanted)
    of_used_batches(the, wanted)
    start = time.process_time()
    sampled_episodes(the.mdp, the.pi_SA, 100_000, HORIZON, np.random.default_rng(0))
    seconds = time.process_time() - start
    print(f"\nLength of the gradient {np.linalg.norm(the.truth_OA):.4f};", end=" ")
    print(f"sampling 10⁵ episodes {seconds:.2f} s of CPU, for each alike.")
    draw(the, min(wanted, 200_000))
