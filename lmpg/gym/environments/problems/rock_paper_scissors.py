"""Rock, paper, scissors: against one who always throws alike, and against oneself."""

from __future__ import annotations

import numpy as np

from lmpg.gym.environments.problems.bandit import Bandit

PAYOFFS = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
"""Mine against the other's: rock, paper, scissors. 1 is won, 0 a draw."""


class RockPaperScissors(Bandit):
    """The other draws from fixed probabilities; a bandit whose rewards are −1, 0 and 1.

    Against (.5, .3, .2) the expected payoffs are (−.1, .3, −.2); with an entropy bonus τ = .1 the
    best policy is softmax(payoffs/τ) = (.017868, .975559, .006573) (G14).
    """

    def __init__(self, opponent: tuple[float, ...] = (0.5, 0.3, 0.2)) -> None:
        super().__init__(tuple(PAYOFFS @ np.array(opponent)))
        self.opponent = np.array(opponent)

    def step(self, action):
        """One throw each."""
        theirs = self.np_random.choice(3, p=self.opponent)
        return 0, float(PAYOFFS[action, theirs]), True, False, {}


def self_play(start_23: np.ndarray, step_size: float, num_steps: int) -> np.ndarray:
    """Probabilities [num_steps, 2, 3] of two who follow their natural gradient against each other.

    θ ← θ + step · payoffs, so π ∝ π · exp(step · payoffs) (Freund & Schapire 1999, "Adaptive game
    playing using multiplicative weights"): the throws circle for ever around the equilibrium,
    their average over time goes to (⅓, ⅓, ⅓) (G14).
    """
    logits_23 = np.log(start_23)
    played = np.empty((num_steps, 2, 3))
    for t in range(num_steps):
        pi_23 = np.exp(logits_23 - logits_23.max(1, keepdims=True))
        pi_23 /= pi_23.sum(1, keepdims=True)
        played[t] = pi_23
        logits_23 = logits_23 + step_size * pi_23[::-1] @ PAYOFFS.T
    return played
