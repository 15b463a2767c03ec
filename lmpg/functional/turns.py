"""Credit in conversations: discounts between a policy's turns, returns of turns, and turns compared
with others that start from the same state.

Only steps in `mask_BT` have a turn, `turns_BT` there counts 0, 1, 2, …; elsewhere (observations,
padding) it may hold anything.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lmpg.functional.advantages import decayed_sums

Relative = Callable[[Tensor, Tensor], Tensor]
"""Of scores and which of them count, [P, G] both, to how each compares with its group, [P, G]."""


def before_another_turn(turns_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Which steps are the last of a turn that another one follows in the row, bool [B, T].

    A row of one turn has none, so that whatever is said of these steps leaves it as it is.
    """
    none = torch.iinfo(turns_BT.dtype).max
    next_BT = torch.full_like(turns_BT, none)  # turns only grow in a row
    next_BT[:, :-1] = torch.where(mask_BT, turns_BT, none).flip(1).cummin(1).values.flip(1)[:, 1:]
    return mask_BT & (next_BT != none) & (next_BT > turns_BT)


def between_turns(
    inside: float | Tensor, between: float, turns_BT: Tensor, mask_BT: Tensor
) -> Tensor:
    """A discount (or λ) for each step, [B, T], float32: `between` where another turn follows,
    `inside` elsewhere.

    With them `gae` and returns-to-go have two time scales, as "Bi-Level GAE" has (arXiv
    2510.16907), in one recursion over the policy's steps. What stands between two turns, the
    environment's tokens, is discounted once, however long it is.
    """
    return torch.where(before_another_turn(turns_BT, mask_BT), between, inside).float()


def turn_returns(rewards_BT: Tensor, turns_BT: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:
    """R_k = Σ_{j ≥ k} γ^(j−k) r_j of the turn k that a step belongs to, [B, T]; 0 outside the mask.

    r_j is the sum of the rewards of turn j's steps, so all steps of a turn have the same return
    (GiGPO, arXiv 2505.10978: the discounted return from a step of the environment on).
    """
    turns_BT = torch.where(mask_BT, turns_BT, 0)
    count = int(turns_BT.max()) + 1 if turns_BT.numel() else 1
    sums_BK = rewards_BT.new_zeros(len(rewards_BT), count)
    sums_BK.scatter_add_(1, turns_BT, rewards_BT.masked_fill(~mask_BT, 0.0))
    returns_BK = decayed_sums(sums_BK, torch.full_like(sums_BK, gamma))
    return returns_BK.gather(1, turns_BT).masked_fill(~mask_BT, 0.0)


def relative_to_same_state(
    returns_BT: Tensor,
    turns_BT: Tensor,
    states_BT: Tensor,
    counted_BT: Tensor,
    group_size: int,
    relative: Relative,
) -> Tensor:
    """How each turn's return compares with those of the turns that start from the same state in
    any row of its group, on all its steps, [B, T] (GiGPO's "anchor states", arXiv 2505.10978).

    returns_BT: of `turn_returns`. counted_BT: the policy's steps in rows that have a score; 0
    elsewhere. relative: a group advantage, over one value for each turn. A row comes back to a
    state as often as it does: each of these turns is a member. A turn alone in its state gives 0.
    """
    rows_B1 = torch.arange(len(turns_BT), device=turns_BT.device)[:, None]
    keys = torch.stack(torch.broadcast_tensors(rows_B1, turns_BT), -1)[counted_BT]
    turn_N2, turn_S = keys.unique(return_inverse=True, dim=0)
    first_N = torch.full((len(turn_N2),), len(turn_S), device=turn_S.device)
    first_N.scatter_reduce_(0, turn_S, torch.arange(len(turn_S), device=turn_S.device), "amin")
    states_N, returns_N = states_BT[counted_BT][first_N], returns_BT[counted_BT][first_N]
    groups_N2 = torch.stack([turn_N2[:, 0] // group_size, states_N], 1)
    found_BT = torch.zeros_like(returns_BT)
    found_BT[counted_BT] = relative_within(returns_N, groups_N2, relative)[turn_S]
    return found_BT


def relative_within(values_N: Tensor, groups_NK: Tensor, relative: Relative) -> Tensor:
    """How each value compares with those that have the same K numbers in `groups_NK`, [N]; groups
    of any size, which `relative` sees as rows with gaps."""
    if not len(values_N):
        return values_N
    _, group_N, sizes_P = groups_NK.unique(return_inverse=True, return_counts=True, dim=0)
    order_N = group_N.argsort(stable=True)
    starts_P = sizes_P.cumsum(0) - sizes_P
    place_N = torch.empty_like(group_N)
    place_N[order_N] = (
        torch.arange(len(group_N), device=group_N.device) - starts_P[group_N[order_N]]
    )
    values_PG = values_N.new_zeros(len(sizes_P), int(sizes_P.max()))
    values_PG[group_N, place_N] = values_N
    valid_PG = torch.arange(values_PG.shape[1], device=sizes_P.device) < sizes_P[:, None]
    return relative(values_PG, valid_PG)[group_N, place_N]
