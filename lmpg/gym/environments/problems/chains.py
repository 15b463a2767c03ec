"""States in a row, in a ring, or just one: values that one can work out by hand."""

from __future__ import annotations

import numpy as np

from lmpg.gym.environments.problems.finite import FiniteEnv, FiniteMDP

STAY, END = 0, 1
LEFT, RIGHT = 0, 1


def one_state_chain(gamma: float = 0.9) -> FiniteMDP:
    """Action 1 ends with reward 1, action 0 stays with none.

    With p = π(1): V = p/(1 − γ(1 − p)), dV/dlogit = p(1 − p)(1 − γ)/(1 − γ(1 − p))²; at p = .5 and
    γ = .9 V = .909091 and the gradient .0826446, without its factor γ^t .0909091 (G13).
    """
    P_SAS = np.array([[[1.0], [0.0]]])
    return FiniteMDP(P_SAS, np.array([[0.0, 1.0]]), np.ones(1), gamma)


def three_state_chain(gamma: float = 0.9) -> FiniteMDP:
    """Reward 1 in state 2, never ending (Baxter, Bartlett & Weaver 2001, "Experiments with
    infinite-horizon, policy-gradient estimation": states A, B, C).

    Action 1 goes to state 2 with probability .8 from everywhere, action 0 with .2; otherwise from
    0 and 2 to 1, from 1 to 0. Best is always action 1: .8 reward per step on average.
    """
    P_SAS = np.zeros((3, 2, 3))
    for action, p in enumerate((0.2, 0.8)):
        P_SAS[:, action, 2] = p
        P_SAS[[0, 1, 2], action, [1, 0, 1]] = 1 - p
    r_SA = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    return FiniteMDP(P_SAS, r_SA, np.array([1.0, 0.0, 0.0]), gamma)


def cyclic_chain(num_states: int = 4, gamma: float = 0.98) -> FiniteMDP:
    """Round and round, reward 1 at each step whatever is done: V = 1/(1 − γ), at .98 50 (G3).

    The time limit of 8 steps is truncation. A critic that takes it for the end arrives at
    (1 − γ⁴)/(1 − γ) + γ⁴(1 − γ⁴)/(1 − γ)/2 = 5.67 in the first state, which is seen at steps 0, 4.
    """
    P_SAS = np.zeros((num_states, 2, num_states))
    P_SAS[np.arange(num_states), :, (np.arange(num_states) + 1) % num_states] = 1
    return FiniteMDP(P_SAS, np.ones((num_states, 2)), np.eye(num_states)[0], gamma)


def random_walk(num_states: int = 5, gamma: float = 1.0) -> FiniteMDP:
    """From the middle left or right until the walk falls off; reward 1 on the right alone.

    Where either way has probability ½, V of the i-th state is i/(n + 1) (G6; Sutton & Barto 2018,
    example 6.2).
    """
    P_SAS = np.zeros((num_states, 2, num_states))
    P_SAS[:, LEFT] = np.eye(num_states, k=-1)
    P_SAS[:, RIGHT] = np.eye(num_states, k=1)
    r_SA = np.zeros((num_states, 2))
    r_SA[-1, RIGHT] = 1
    return FiniteMDP(P_SAS, r_SA, np.eye(num_states)[num_states // 2], gamma)


class OneStateChain(FiniteEnv):
    """Stay for nothing or end with 1: see `one_state_chain` (G13)."""

    def __init__(self) -> None:
        super().__init__(one_state_chain())


class ThreeStateChain(FiniteEnv):
    """Never ending, at best .8 per step: see `three_state_chain`. The time limit truncates."""

    def __init__(self) -> None:
        super().__init__(three_state_chain())


class CyclicChain(FiniteEnv):
    """V = 1/(1 − γ) in spite of the time limit: see `cyclic_chain` (G3)."""

    def __init__(self, num_states: int = 4) -> None:
        super().__init__(cyclic_chain(num_states))


class RandomWalk(FiniteEnv):
    """V = i/(n + 1) for the walk that is random: see `random_walk` (G6)."""

    def __init__(self, num_states: int = 5) -> None:
        super().__init__(random_walk(num_states))
