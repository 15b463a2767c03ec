"""One batch used again and again: what REINFORCE, plain ratios and PPO make of it.

python docs/reuse.py [NUM_SEEDS]   (prints two tables, draws figures/reuse.png; some minutes)

The performance η is calculated and not played; the algorithms and the update are those that train
everything else, and all losses are given the same advantages.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor, nn

from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.gym.classic.exact.exact_values import performance
from lmpg.gym.classic.exact.improvement import policy_iteration
from lmpg.gym.classic.exact.sampled_episodes import sampled_episodes
from lmpg.gym.environments.problems.aliased import short_corridor
from lmpg.gym.environments.problems.finite import FiniteMDP, random_mdp
from lmpg.runtime.processes import Processes
from lmpg.training.settings import UpdateSettings
from lmpg.training.update import Updater
from lmpg.types import Credit, Evaluation, Rollout

mpl.use("Agg")
import matplotlib.pyplot as plt

FIGURE = Path(__file__).parent / "figures" / "reuse.png"
EPOCHS = (0, 1, 2, 4, 8, 16, 32, 64)
CORRIDOR_LIMIT, CORRIDOR_EPISODES, CORRIDOR_P = 50, 64, 0.2
STATES, ACTIONS, HORIZON, BATCHES = 10, 4, 10, 20
EPOCHS_PER_BATCH, SIZES = (1, 4, 16, 64), (4, 16)
LEARNING_RATE, ALL = 0.05, 10**9
OF_PPO = {"kl_coef": 0.0, "value_coef": 0.0, "value_clip": None}
CREDIT = REINFORCE(kl_coef=0.0, whiten=True)
LOSSES = {
    "REINFORCE": (CREDIT, "tab:red"),
    "ratios, not clipped": (PPO(clip=None, **OF_PPO), "tab:orange"),
    "PPO, KL penalty (β = 3)": (PPO(clip=None, penalty_coef=3.0, **OF_PPO), "tab:green"),
    "PPO, clip 0.2": (PPO(clip=0.2, **OF_PPO), "tab:blue"),
}


class TabularPolicy(nn.Module):
    """A logit per observation and action, all that `Updater` asks for."""

    def __init__(self, theta_OA: np.ndarray) -> None:
        super().__init__()
        self.theta_OA = nn.Parameter(torch.tensor(theta_OA, dtype=torch.float32))

    def evaluate(self, inputs: dict[str, Tensor]) -> Evaluation:
        logprobs = self.theta_OA.log_softmax(-1)[inputs["observations"]]
        chosen = logprobs.gather(-1, inputs["actions"][..., None])[..., 0]
        return Evaluation(chosen, -(logprobs.exp() * logprobs).sum(-1), torch.zeros_like(chosen))

    def pi_SA(self, mdp: FiniteMDP) -> np.ndarray:
        return self.theta_OA.detach().double().softmax(-1).numpy()[mdp.seen_S]


class Learner:
    """A policy with its optimizer, and a problem whose every batch it may use as often as told."""

    def __init__(self, algorithm, mdp: FiniteMDP, theta_OA: np.ndarray, seed: int) -> None:
        sizes = {"rollout_size": ALL, "minibatch_size": ALL, "microbatch_size": ALL, "epochs": 1}
        settings = UpdateSettings(learning_rate=LEARNING_RATE, **sizes)
        self.algorithm, self.mdp, self.policy = algorithm, mdp, TabularPolicy(theta_OA)
        self.updater = Updater(self.policy, settings, 1, seed, Processes(), single_steps=True)
        self.rng = np.random.default_rng(seed)

    def batch(self, num_episodes: int, horizon: int) -> tuple[Rollout, Credit]:
        """Episodes of the present policy, and their whitened returns-to-go."""
        pi_SA = self.policy.pi_SA(self.mdp)
        e = sampled_episodes(self.mdp, pi_SA, num_episodes, horizon, self.rng)
        seen_NT = torch.from_numpy(self.mdp.seen_S)[e.states_NT]
        inputs = {"observations": seen_NT, "actions": e.actions_NT}
        with torch.no_grad():
            log_pi_NT = self.policy.evaluate(inputs).logprobs_BT
        everyone_N = torch.ones(num_episodes, dtype=torch.bool)
        paid_NT, over_NT = e.rewards_NT.float(), e.ended_NT
        rollout = Rollout(inputs, e.mask_NT, log_pi_NT, paid_NT, over_NT, over_NT, everyone_N)
        A_NT = CREDIT.assign_credit(rollout).advantages_BT
        return rollout, Credit(A_NT, paid_NT, returns_BT=A_NT)  # the returns are not looked at

    def learn(self, rollout: Rollout, credit: Credit, epochs: int) -> None:
        """So many passes over all of it, one step of Adam each."""
        for _ in range(epochs):
            self.updater.update(self.algorithm, rollout, credit, 1)

    @property
    def eta(self) -> float:
        """What the present policy earns."""
        return performance(self.mdp, self.policy.pi_SA(self.mdp))


def corridor_etas(algorithm, seed: int) -> list[float]:
    """η in the short corridor after so many passes over one batch."""
    mdp = short_corridor().with_horizon(CORRIDOR_LIMIT)
    learner = Learner(algorithm, mdp, np.log([[1 - CORRIDOR_P, CORRIDOR_P]]), seed)
    batch, found = learner.batch(CORRIDOR_EPISODES, CORRIDOR_LIMIT), [learner.eta]
    for before, after in pairwise(EPOCHS):
        learner.learn(*batch, after - before)
        found.append(learner.eta)
    return found


def share_of_the_gain(algorithm, seed: int, num_episodes: int, epochs: int) -> float:
    """Of what is to be gained in a random problem, after some batches used `epochs` times each."""
    rng = np.random.default_rng(1000 + seed)
    mdp = random_mdp(STATES, ACTIONS, 0.95, rng).with_horizon(HORIZON)
    learner = Learner(algorithm, mdp, np.zeros((STATES, ACTIONS)), seed)
    first = learner.eta
    best = performance(mdp, policy_iteration(mdp, learner.policy.pi_SA(mdp)))
    for _ in range(BATCHES):
        learner.learn(*learner.batch(num_episodes, HORIZON), epochs)
    return (learner.eta - first) / (best - first)


def show(heads: tuple, found: dict[str, np.ndarray], digits: int) -> None:
    """A Markdown table of mean and worst over the seeds, one row per loss."""
    print("| loss | " + " | ".join(map(str, heads)) + " |\n|---" + "|---:" * len(heads) + "|")
    for name, values in found.items():
        cells = [f"{x:.{digits}f} ({y:.{digits}f})" for x, y in zip(values.mean(0), values.min(0))]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(flush=True)


def draw(axis, x: tuple, found: dict[str, np.ndarray]) -> None:
    """The mean over the seeds, and all of them behind it."""
    for name, values in found.items():
        colour = LOSSES[name][1]
        axis.plot(range(len(x)), values.T, color=colour, alpha=0.15, lw=1)
        axis.plot(range(len(x)), values.mean(0), "o-", ms=4, color=colour, label=name)
    axis.set_xticks(range(len(x)), x)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2))
    ends = {k: np.array([corridor_etas(loss, i) for i in seeds]) for k, (loss, _) in LOSSES.items()}
    show(EPOCHS, ends, 1)
    draw(axes[0], EPOCHS, ends)
    axes[0].set_title("short corridor: one batch of 64 episodes", fontsize=11)
    axes[0].set_ylabel("performance η")
    axes[0].legend(frameon=False, fontsize=9, loc="lower left")
    for axis, size in zip(axes[1:], SIZES):
        shares = {
            name: np.array(
                [[share_of_the_gain(loss, i, size, k) for k in EPOCHS_PER_BATCH] for i in seeds]
            )
            for name, (loss, _) in LOSSES.items()
        }
        show(EPOCHS_PER_BATCH, shares, 2)
        draw(axis, EPOCHS_PER_BATCH, shares)
        axis.set_title(f"random problems: {BATCHES} batches of {size} episodes", fontsize=11)
        axis.set_ylabel("share of the possible gain")
        axis.set_ylim(0, 1)
    for axis in axes:
        axis.set_xlabel("epochs on each batch")
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=130)
