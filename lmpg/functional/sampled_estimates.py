"""Estimates from several samples per problem: pass@k, and how sure a mean over problems is."""

from __future__ import annotations

import torch
from torch import Tensor

RESAMPLES = 10_000
_AT_ONCE = 2_000_000  # numbers drawn together


def pass_at_k(passed_P: Tensor, sampled_P: Tensor, k: int) -> Tensor:
    """The chance that one of k samples passes, [P], float64; NaN where fewer than k were drawn.

    Unbiased (arXiv 2107.03374, eq. 1): 1 − C(n−c, k) / C(n, k), of n `sampled_P` and c `passed_P`.
    The plain 1 − (1 − c/n)^k is too low. Computed as a product, as the binomials overflow.
    """
    n_P, failed_P = sampled_P.double(), (sampled_P - passed_P).double()
    all_fail_P = torch.ones_like(n_P)
    for j in range(k):
        all_fail_P = all_fail_P * (failed_P - j).clamp(min=0) / (n_P - j)
    return torch.where(n_P < k, torch.nan, 1 - all_fail_P)


def bootstrap_interval(
    values_P: Tensor, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """(low, high) of the mean of P independent values: percentiles of the means of resamples drawn
    with replacement (Efron 1979). NaNs are left out; without any value both ends are NaN.

    Of differences between two models on the same problems it is the interval of the paired
    difference. Samples of one problem are not independent: hand over one value per problem.
    """
    known_N = values_P[~values_P.isnan()].double()
    count = len(known_N)
    if not count:
        return float("nan"), float("nan")
    random, means = torch.Generator().manual_seed(seed), []
    for start in range(0, resamples, step := max(1, _AT_ONCE // count)):
        rows = min(step, resamples - start)
        means.append(known_N[torch.randint(count, (rows, count), generator=random)].mean(1))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.cat(means).quantile(ends).tolist()
    return low, high
