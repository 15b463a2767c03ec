"""First-pass gradients where episodes end by themselves: how a reduction weighs unequal lengths.

As a language model sees it: one action ends the response, the score is the undiscounted return, G
responses answer the same prompt, and rows are reduced to a loss minibatch by minibatch.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from lmpg.algorithms.rloo import RLOO
from lmpg.functional.masking import loss_weights
from lmpg.gym.classic.exact.comparison import CreditOf, Setting, compared
from lmpg.gym.classic.exact.exact_values import state_values
from lmpg.gym.classic.exact.gradients import policy_gradient, softmax_policy
from lmpg.gym.classic.exact.measuring import Quality
from lmpg.gym.classic.exact.sampled_episodes import SampledEpisodes
from lmpg.gym.environments.problems.finite import FiniteMDP
from lmpg.types import Rollout

LONGEST, MINIBATCH, GROUP_SIZE = 10, 64, 8
Paid = Literal["first action", "every step"]


def setting_of_lengths(paid: Paid, seed: int = 0) -> Setting:
    """Three states, three actions of which the first ends the episode; ten steps at most, γ = 1.

    first action: 1 where the first action is the last of the three, which has nothing to do with
    how long an episode is; every step: N(1, 1) for each, so that long episodes score more.
    """
    rng = np.random.default_rng(seed)
    P_SAS = rng.dirichlet(np.ones(3), size=(3, 3))
    P_SAS[:, 0] = 0.0
    r_SA = 1 + rng.standard_normal((3, 3))
    theta_OA = 0.5 * rng.standard_normal((3, 3)) - np.array([1.0, 0.0, 0.0])
    mdp = FiniteMDP(P_SAS, r_SA, np.full(3, 1 / 3), 1.0).with_horizon(LONGEST)
    if paid == "first action":
        mdp.r_SA[:3], mdp.r_SA[3:] = (0.0, 0.0, 1.0), 0.0
    pi_SA = softmax_policy(mdp, theta_OA)
    V_S, truth_OA = state_values(mdp, pi_SA), policy_gradient(mdp, theta_OA, discounted=True)
    return Setting(mdp, theta_OA, pi_SA, pi_SA, V_S, V_S, truth_OA, truth_OA)


def credits_by_reduction() -> dict[str, CreditOf]:
    """Name of method and reduction → its credit times the weight of the step in the loss."""
    groups = {"group_size": GROUP_SIZE, "kl_coef": 0.0}
    centred = {**groups, "advantage": "centred"}
    return {
        "RLOO: token_mean": weighed(RLOO(**groups)),
        "REINFORCE++: token_mean": weighed(ReinforcePlusPlus(kl_coef=0.0)),
        "GRPO: token_mean": weighed(GRPO(**groups)),
        "GRPO: sequence_mean": weighed(GRPO(**groups, reduction="sequence_mean")),
        "Dr. GRPO: fixed_length": weighed(GRPO(**centred, reduction="fixed_length")),
        "Dr. GRPO: sequence_mean": weighed(GRPO(**centred, reduction="sequence_mean")),
    }


def compared_by_reduction(paid: Paid, num_episodes: int) -> dict[str, Quality]:
    """Quality of each on the same episodes, whole minibatches of them."""
    s, whole = setting_of_lengths(paid), num_episodes // MINIBATCH * MINIBATCH
    found = compared(s, credits_by_reduction(), s.pi_SA, whole, 8, GROUP_SIZE, LONGEST)
    return {name: q for name, (q, _) in found.items()}


def weighed(algorithm: Any) -> CreditOf:
    """The algorithm's own credit, weighed as the update weighs it, times the rows of a minibatch:
    the mean over episodes is then the mean over minibatches."""

    def credit(e: SampledEpisodes) -> Tensor:
        credit_NT = algorithm.assign_credit(rollout_of(e)).advantages_BT
        parts = e.mask_NT.split(MINIBATCH)
        weights = [loss_weights(x, algorithm.reduction, LONGEST) * len(x) for x in parts]
        return torch.cat(weights).double() * credit_NT.double()

    return credit


def rollout_of(e: SampledEpisodes) -> Rollout:
    """The episodes as rows, each with its return on its last step."""
    last_NT = e.ended_NT.bool()
    scores_N1 = e.rewards_NT.sum(1, keepdim=True)
    return Rollout(
        inputs={},
        mask_BT=e.mask_NT,
        logprobs_BT=torch.zeros_like(e.rewards_NT),
        rewards_BT=torch.where(last_NT, scores_N1, 0.0),
        terminated_BT=last_NT,
        ended_BT=last_NT,
        scorable_B=torch.ones(len(last_NT), dtype=torch.bool),
    )
