"""From credit to gradients, and how good those are against the gradient that is calculated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmpg.gym.classic.exact.estimators import discounts
from lmpg.gym.classic.exact.sampled_episodes import SampledEpisodes


def gradients(
    credit_NT: Tensor,
    episodes: SampledEpisodes,
    pi_SA: np.ndarray,
    seen_S: np.ndarray,
    gamma: float,
) -> Tensor:
    """Σ_t γ^t credit_t ∇log π per episode, [N, O·A], for a softmax with logits θ_OA.

    ∂log π(a | s)/∂θ_{o b} = 1[b = a] − π(b | s) where s shows o, and 0 elsewhere.
    """
    N, T = credit_NT.shape
    num_actions, num_seen = pi_SA.shape[1], int(seen_S.max()) + 1
    pi, seen = torch.from_numpy(pi_SA), torch.from_numpy(seen_S)
    weights_NT = credit_NT * discounts(episodes, gamma) * episodes.mask_NT
    total_NOA = torch.zeros(N, num_seen, num_actions, dtype=torch.float64)
    everyone = torch.arange(N)
    for t in range(T):
        states_N, w_N = episodes.states_NT[:, t], weights_NT[:, t]
        seen_N = seen[states_N]
        total_NOA[everyone, seen_N] -= w_N[:, None] * pi[states_N]
        total_NOA[everyone, seen_N, episodes.actions_NT[:, t]] += w_N
    return total_NOA.reshape(N, -1)


@dataclass(frozen=True)
class Quality:
    """What the mean and the spread of estimates say about the estimator.

    bias: |mean − truth|. standard_error of the mean as a vector, and variance of one episode's
    estimate: the traces of the covariances. largest_error: distance from the truth of the worst
    component, in standard errors of that component. length: |mean|. angle: between mean and truth,
    in degrees; a factor, which the step size can make good, does not change it.
    """

    bias: float
    standard_error: float
    largest_error: float
    variance: float
    length: float
    angle: float

    @property
    def noise(self) -> float:
        """Variance over the mean's squared length; a factor does not change it either."""
        return self.variance / self.length**2


def quality(samples_ND: Tensor, truth_D: np.ndarray, episodes_each: int = 1) -> Quality:
    """How good the estimates `samples_ND` are of the calculated gradient `truth_D`.

    episodes_each: how many episodes one estimate is the mean of. The variance is multiplied by it,
    so that estimators are compared at the same number of episodes.
    """
    N, truth = len(samples_ND), torch.from_numpy(truth_D).reshape(-1)
    mean_D, variance_D = samples_ND.mean(0), samples_ND.var(0)
    error_D, trace = mean_D - truth, float(variance_D.sum())
    in_errors_D = (error_D.abs() / (variance_D / N).sqrt()).nan_to_num(nan=0.0, posinf=torch.inf)
    cosine = float(mean_D @ truth / (mean_D.norm() * truth.norm()))
    return Quality(
        bias=float(error_D.norm()),
        standard_error=(trace / N) ** 0.5,
        largest_error=float(in_errors_D.max()),
        variance=trace * episodes_each,
        length=float(mean_D.norm()),
        angle=math.degrees(math.acos(min(1.0, max(-1.0, cosine)))),
    )
