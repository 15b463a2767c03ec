"""States that look alike: there the best policy is a random one (G16)."""

from __future__ import annotations

import numpy as np

from lmpg.gym.environments.problems.finite import FiniteEnv, FiniteMDP

LEFT, RIGHT, DOWN = 0, 1, 2


def short_corridor(gamma: float = 1.0) -> FiniteMDP:
    """Three states that look alike, −1 a step, the goal right of the third, left and right
    exchanged in the second (Sutton & Barto 2018, example 13.1).

    With p = π(right): V(p) = (2p − 4)/(p(1 − p)), best p = 2 − √2 = .585786 with V = −11.6569; the
    nearly greedy p = .95 has −44.21.
    """
    P_SAS = np.zeros((3, 2, 3))
    P_SAS[0, LEFT, 0] = P_SAS[0, RIGHT, 1] = 1
    P_SAS[1, LEFT, 2] = P_SAS[1, RIGHT, 0] = 1
    P_SAS[2, LEFT, 1] = 1
    return FiniteMDP(P_SAS, -np.ones((3, 2)), np.eye(3)[0], gamma, np.zeros(3, dtype=int))


def aliased_gridworld(gamma: float = 1.0) -> FiniteMDP:
    """Five cells in a row, −1 a step; the goal lies below the middle one.

    The second and the fourth cell are grey and look alike; the episode starts in any of the five.
    Actions: left, right, down; against a wall one stays. With left and right equally likely in the
    grey cells it takes 5, 4, 1, 4, 5 steps, on average 3.8, and nothing is better; a policy that is
    deterministic there never arrives from one side (G16; D. Silver's lectures, part 7).
    """
    P_SAS = np.zeros((5, 3, 5))
    for cell in range(5):
        P_SAS[cell, LEFT, max(cell - 1, 0)] = 1
        P_SAS[cell, RIGHT, min(cell + 1, 4)] = 1
        P_SAS[cell, DOWN, cell] = cell != 2
    start_S = np.full(5, 0.2)
    return FiniteMDP(P_SAS, -np.ones((5, 3)), start_S, gamma, np.array([0, 1, 2, 1, 3]))


class Corridor(FiniteEnv):
    """Best with p(right) = .586, worth −11.66: see `short_corridor` (G16)."""

    def __init__(self) -> None:
        super().__init__(short_corridor())


class AliasedGridworld(FiniteEnv):
    """Best with a coin in the grey cells, 3.8 steps: see `aliased_gridworld` (G16)."""

    def __init__(self) -> None:
        super().__init__(aliased_gridworld())
