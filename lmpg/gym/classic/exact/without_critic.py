"""Credit without a critic: a response's score against those of others, as language models learn.

An episode is a response, its first state the prompt, its discounted return R the score r; G
episodes in a row answer the same prompt. All credit is over γ^t, as in `estimators.whole_returns`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lmpg.functional.advantages import group_centred, group_standardised, leave_one_out
from lmpg.functional.masking import WHITEN_EPS, whitened
from lmpg.gym.classic.exact.comparison import CreditOf, Setting
from lmpg.gym.classic.exact.estimators import (
    discounts,
    lambda_advantages,
    returns_to_go,
    whole_returns,
)
from lmpg.gym.classic.exact.exact_values import state_values
from lmpg.gym.classic.exact.improvement import greedy
from lmpg.gym.classic.exact.sampled_episodes import SampledEpisodes


def credits_without_critic(s: Setting, group_size: int) -> dict[str, CreditOf]:
    """Name of the method → credit, and PPO's first pass with the exact V to compare with."""
    gamma = s.mdp.gamma
    greedy_S = torch.from_numpy(state_values(s.mdp, greedy(s.pi_SA)))

    def scores(e: SampledEpisodes) -> Tensor:
        return whole_returns(e, gamma, 0.0)

    def grouped(advantage: Callable[[Tensor, Tensor], Tensor]) -> CreditOf:
        def credit(e: SampledEpisodes) -> Tensor:
            scores_PG = scores(e)[:, 0].view(-1, group_size)  # γ^0 = 1
            known_PG = torch.ones_like(scores_PG, dtype=torch.bool)
            return advantage(scores_PG, known_PG).view(-1, 1) / discounts(e, gamma)

        return credit

    return {
        "no baseline": scores,
        "RLOO": grouped(leave_one_out),
        "Dr. GRPO": grouped(group_centred),
        "GRPO": grouped(lambda r_PG, known_PG: group_standardised(r_PG, known_PG, 1e-6)),
        "ReMax": lambda e: scores(e) - greedy_S[e.states_NT[:, :1]] / discounts(e, gamma),
        "REINFORCE++": lambda e: whitened(returns_to_go(e, gamma), e.mask_NT, WHITEN_EPS),
        "PPO": lambda e: lambda_advantages(e, s.V_S, gamma, 0.95),
    }
