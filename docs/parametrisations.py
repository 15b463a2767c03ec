"""The natural gradient does not mind what the parameters are called; the plain gradient does.

python docs/parametrisations.py   (prints a table, draws figures/parametrisations.png; seconds)

A bandit with three arms that pay 1, ½ and 0. Its policy is softmax θ, and θ = Mψ names the same
policies in another way: a step in ψ moves θ by M times the gradient by ψ, which is M Mᵀ ∂η/∂θ.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

from lmpg.gym.classic.exact.gradients import natural_gradient, policy_gradient, softmax_policy
from lmpg.gym.environments.problems.bandit import bandit

mpl.use("Agg")
import matplotlib.pyplot as plt

FIGURE = Path(__file__).parent / "figures" / "parametrisations.png"
MDP, START = bandit((1.0, 0.5, 0.0)), np.log([[0.04, 0.16, 0.8]])
NAMES = {
    "θ": (np.eye(3), "-"),
    "first logit ×4": (np.diag([4.0, 1, 1]), "--"),
    "mixed logits": (np.array([[1.0, 0, 0], [-1, 1.5, 0], [1, 1, 0.5]]), ":"),
}
COLOURS = dict(zip(NAMES, ("tab:blue", "tab:red", "tab:green")))
CORNERS = np.array([[0.5, 3**0.5 / 2], [1, 0], [0, 0]])  # of the triangle, where each arm is sure


def plain(theta: np.ndarray, M: np.ndarray) -> np.ndarray:
    """dθ of a step along ∂η/∂ψ."""
    return M @ M.T @ policy_gradient(MDP, theta, True)[0]


def natural(theta: np.ndarray, M: np.ndarray) -> np.ndarray:
    """dθ of a step along F(ψ)⁺ ∂η/∂ψ, with F(ψ) = MᵀF(θ)M."""
    inverse = np.linalg.pinv(M.T @ fisher(theta) @ M, rcond=1e-9)
    return M @ inverse @ M.T @ policy_gradient(MDP, theta, True)[0]


def fisher(theta: np.ndarray) -> np.ndarray:
    """F(θ) = diag π − π πᵀ."""
    pi = softmax_policy(MDP, theta)[0]
    return np.diag(pi) - np.outer(pi, pi)


def path(direction, M: np.ndarray, steps: int, kl: float) -> np.ndarray:
    """π along the way, [steps + 1, 3], until an arm is all but sure.

    Each step is √(2 kl / dθᵀF dθ) long, as TRPO's, so that all ways are equally fast.
    """
    theta, found = START.copy(), [softmax_policy(MDP, START)[0]]
    while len(found) <= steps and found[-1].max() < 0.999:
        along = direction(theta, M)
        theta = theta + (2 * kl / (along @ fisher(theta) @ along)) ** 0.5 * along
        found.append(softmax_policy(MDP, theta)[0])
    return np.array(found)


def draw(axis, direction, title: str) -> None:
    """The ways from one start, over the lines of equal reward."""
    grid = np.array([(a, b, 1 - a - b) for a in GRID for b in GRID if a + b <= 1 + 1e-9])
    x, y = (grid @ CORNERS).T
    axis.tricontour(x, y, grid @ MDP.r_SA[0], levels=11, colors="0.8", linewidths=0.8)
    axis.plot(*np.vstack([CORNERS, CORNERS[:1]]).T, color="0.4", lw=1)
    for name, (M, style) in NAMES.items():
        way = path(direction, M, 1000, 1e-5) @ CORNERS
        axis.plot(*way.T, style, color=COLOURS[name], lw=2.2, label=name)
    axis.plot(*(softmax_policy(MDP, START)[0] @ CORNERS), "ko", ms=5)
    for corner, pays, where in zip(CORNERS, ("1", "½", "0"), ((0, 6), (4, -12), (-4, -12))):
        axis.annotate(f"pays {pays}", corner, where, textcoords="offset points", ha="center")
    axis.set_title(title, fontsize=11, pad=22)
    axis.set_aspect("equal")
    axis.axis("off")


if __name__ == "__main__":
    GRID = np.linspace(0, 1, 51)
    print("| step of 0.05 nats | " + " | ".join(NAMES) + " |\n|---|" + "---|" * len(NAMES))
    for name, direction in (("plain gradient", plain), ("natural gradient", natural)):
        ends = [path(direction, M, 1, 0.05)[-1] for M, _ in NAMES.values()]
        print(f"| {name} | " + " | ".join(", ".join(f"{p:.6f}" for p in end) for end in ends), "|")
    exact = START + 0.1 * natural_gradient(MDP, START)
    found = START + 0.1 * natural(START, NAMES["mixed logits"][0])
    far = abs(softmax_policy(MDP, exact) - softmax_policy(MDP, found)).max()
    print(f"\nNatural step in mixed logits against `exact.gradients.natural_gradient`: {far:.1e}")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4))
    draw(axes[0], plain, "plain gradient: another name, another way")
    draw(axes[1], natural, "natural gradient: one way")
    axes[1].legend(frameon=False, loc="upper right", title="parameters", bbox_to_anchor=(1.12, 1))
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=130)
