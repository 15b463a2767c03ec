"""Advantage estimators: how much better than expected each step, or each response, was."""

from __future__ import annotations

import torch
from torch import Tensor

from lmpg.functional.masking import WHITEN_EPS, masked_mean, rounding, whitened


def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    next_values_BT: Tensor,
    terminated_BT: Tensor,
    ended_BT: Tensor,
    mask_BT: Tensor,
    gamma: float | Tensor,
    lam: float | Tensor,
) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16), [B, T].

    δ_t = r_t + γ V(s_{t+1})(1 − terminated_t) − V(s_t) and A_t = δ_t + γλ(1 − ended_t) A_{t+1},
    where t + 1 is the next step in `mask_BT`: the sum passes over the steps that are not in it
    (their advantage is 0). `next_values_BT` is V after the step, of the true last observation
    where an episode was truncated. With V = 0 and λ = 1 this is the reward-to-go. λ may differ
    between rows, [B, 1], and both between steps, [B, T]: γ_t and λ_t lead from t to t + 1.
    """
    bootstrap_BT = torch.where(terminated_BT, 0.0, next_values_BT)
    deltas_BT = rewards_BT + gamma * bootstrap_BT - values_BT
    decay_BT = gamma * lam * (~ended_BT).to(deltas_BT.dtype)
    sums_BT = decayed_sums(
        deltas_BT.masked_fill(~mask_BT, 0.0), decay_BT.masked_fill(~mask_BT, 1.0)
    )
    return sums_BT.masked_fill(~mask_BT, 0.0)


def length_adaptive_lambda(lengths: Tensor, alpha: float) -> Tensor:
    """λ = 1 − 1/(αl) for rows of l steps, at least 0 (arXiv 2504.05118, section 4.2).

    The weights λ^k of a long row reach αl steps on average, a share of it instead of a number.
    """
    return (1 - 1 / (alpha * lengths.clamp(min=1))).clamp(min=0)


def decayed_sums(x_BT: Tensor, decay_BT: Tensor) -> Tensor:
    """S_t = x_t + decay_t S_{t+1}, [B, T], in log₂ T rounds where a loop over steps takes T.

    Each round doubles how many later steps a sum holds (Hillis & Steele 1986, "Data parallel
    algorithms").
    """
    sums_BT, decay_BT, reach = x_BT.clone(), decay_BT.clone(), 1
    while reach < x_BT.shape[1]:
        sums_BT[:, :-reach] += decay_BT[:, :-reach] * sums_BT[:, reach:]
        decay_BT[:, :-reach] *= decay_BT[:, reach:].clone()
        reach *= 2
    return sums_BT


def n_step_advantages(
    rewards_BT: Tensor,
    values_BT: Tensor,
    next_values_BT: Tensor,
    terminated_BT: Tensor,
    ended_BT: Tensor,
    mask_BT: Tensor,
    gamma: float,
    n: int,
) -> Tensor:
    """A^(n)_t = r_t + … + γ^(n−1) r_{t+n−1} + γ^n V(s_{t+n}) − V(s_t), n ≥ 1, [B, T].

    arXiv 1506.02438, eq. 11–14; fewer steps where the episode ends before. Arguments as in `gae`,
    which is their mixture (1 − λ) Σ_n λ^(n−1) A^(n) (eq. 16).
    """
    bootstrap_BT = torch.where(terminated_BT, 0.0, next_values_BT)
    deltas_BT = rewards_BT + gamma * bootstrap_BT - values_BT
    advantages_BT = deltas_BT
    for _ in range(n - 1):
        later_BT = next_in_mask(advantages_BT, mask_BT)
        advantages_BT = deltas_BT + torch.where(ended_BT, 0.0, gamma * later_BT)
    return torch.where(mask_BT, advantages_BT, 0.0)


def next_in_mask(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """For each step, the value at the next step that `mask_BT` marks; 0 after the last one."""
    next_TB = torch.zeros_like(values_BT.T)
    carried_B = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(values_BT.shape[1])):
        next_TB[t] = carried_B
        carried_B = torch.where(mask_BT[:, t], values_BT[:, t], carried_B)
    return next_TB.T.contiguous()


def group_centred(scores_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Score minus the mean of its group (arXiv 2503.20783), [P, G].

    0 where not valid, and in a group without spread (beyond rounding).
    """
    known_PG = torch.where(valid_PG, scores_PG, 0.0)
    mean_P1 = known_PG.sum(1, keepdim=True) / valid_PG.sum(1, keepdim=True).clamp(min=1)
    centred_PG = torch.where(valid_PG, known_PG - mean_P1, 0.0)
    noise_P1 = rounding(known_PG.abs().amax(1, keepdim=True))
    return torch.where(centred_PG.abs().amax(1, keepdim=True) > noise_P1, centred_PG, 0.0)


def group_standardised(scores_PG: Tensor, valid_PG: Tensor, eps: float) -> Tensor:
    """(score − group mean) / (group std + eps) (arXiv 2402.03300, section 4.1.2), [P, G].

    The std is unbiased. A group without spread, or with a single valid score, gives 0.
    """
    centred_PG = group_centred(scores_PG, valid_PG)
    degrees_P1 = (valid_PG.sum(1, keepdim=True) - 1).clamp(min=1)
    std_P1 = (centred_PG.square().sum(1, keepdim=True) / degrees_P1).sqrt()
    return centred_PG / (std_P1 + eps)


def leave_one_out(scores_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Score minus the mean of the *other* valid scores of its group (arXiv 2402.14740, eq. 8).

    [P, G]; equals n/(n − 1) times the centred score. A score alone in its group gives 0.
    """
    count_P1 = valid_PG.sum(1, keepdim=True)
    scale_P1 = count_P1 / (count_P1 - 1).clamp(min=1)
    return group_centred(scores_PG, valid_PG) * scale_P1


def batch_standardised(scores_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Score minus the mean of its group, over the std of all groups' centred scores, [P, G].

    The last step of GDPO (arXiv 2601.05242, section 3), and a form of GRPO without its bias
    towards prompts whose scores hardly differ.
    """
    return whitened(group_centred(scores_PG, valid_PG), valid_PG, WHITEN_EPS)


def decoupled(scores_KPG: Tensor, weights_K: Tensor, valid: Tensor, eps: float) -> Tensor:
    """Σ_k w_k (r_k − group mean of r_k) / (group std of r_k + eps) of K rewards, [P, G].

    arXiv 2601.05242, section 3: each reward keeps its own say, however large its numbers are,
    where the spread of the sum would be that of the largest alone. One that is not
    valid is 0; `valid` is [P, G], or of each reward [K, P, G].
    """
    each = [
        group_standardised(*of_one, eps) for of_one in zip(scores_KPG, valid.expand_as(scores_KPG))
    ]
    return torch.einsum("k,kpg->pg", weights_K, torch.stack(each))


def length_weighted(scores_PG: Tensor, valid_PG: Tensor, lengths_PG: Tensor) -> Tensor:
    """Score minus Σ l r / Σ l over its group, l a response's length (arXiv 2505.23585), [P, G].

    The baseline of least variance where the squared norm of ∇log π grows with the length.
    """
    centred_PG = group_centred(scores_PG, valid_PG)
    weights_PG = torch.where(valid_PG, lengths_PG, 0).to(scores_PG.dtype)
    total_P1 = weights_PG.sum(1, keepdim=True).clamp(min=1)
    baseline_P1 = (weights_PG * centred_PG).sum(1, keepdim=True) / total_P1
    return torch.where(valid_PG, centred_PG - baseline_P1, 0.0)


def relative_to_mean(scores_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """(score − group mean) / group mean, of scores that are 0 or more (arXiv 2602.02710), [P, G].

    With 1 for right and 0 for wrong, which has the probability p, the expected policy gradient is
    (1 − (1 − p)^(G − 1)) ∇log p, so that rare successes count the most. 0 where all scores are 0.
    """
    mean_P1 = torch.where(valid_PG, scores_PG, 0.0).sum(1, keepdim=True)
    mean_P1 = mean_P1 / valid_PG.sum(1, keepdim=True).clamp(min=1)
    return group_centred(scores_PG, valid_PG) / torch.where(mean_P1 > 0, mean_P1, 1.0)


def best_of_group(scores_PG: Tensor, valid_PG: Tensor, count: int) -> Tensor:
    """Which are the `count` best of their group (arXiv 2304.06767), bool [P, G].

    Of scores that are equal up to rounding those that were sampled first; never one that is not
    valid.
    """
    known_PG = torch.where(valid_PG, scores_PG, 0.0)
    grain_P1 = rounding(known_PG.abs().amax(1, keepdim=True))
    ranked_PG = torch.where(valid_PG, (known_PG / grain_P1).round(), -torch.inf)
    order_PG = ranked_PG.argsort(dim=1, descending=True, stable=True)
    best_PG = torch.zeros_like(valid_PG).scatter(1, order_PG[:, :count], True)
    return best_PG & valid_PG


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 − Var(R − V) / Var(R) over the masked-in steps: 1 perfect, 0 no better than a constant.

    NaN where the returns have no spread.
    """
    residual = returns - values
    unexplained = masked_mean((residual - masked_mean(residual, mask)).square(), mask)
    total = masked_mean((returns - masked_mean(returns, mask)).square(), mask)
    return torch.where(total > 0, 1 - unexplained / total, torch.nan)
