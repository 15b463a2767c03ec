"""What an algorithm makes of a rollout at the first pass: the weight of each step's score function.

A gradient estimate is Σ_bt w_bt ∇log π_bt. The algorithm's own credit and loss give w, as in an
update whose minibatch is the whole rollout and whose policy is the one that sampled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmpg.functional.masking import loss_weights
from lmpg.types import Algorithm, Evaluation, Minibatch, Rollout

SMALL = 1e-6
"""Of the largest singular value: float32 rounding."""


def score_weights(algorithm: Algorithm, rollout: Rollout, max_length: int) -> Tensor:
    """w [B, T]: less the derivative of the policy's loss with respect to each log-prob.

    max_length: steps that a row can have at most, for the reduction `fixed_length`.
    """
    batch = Minibatch.of(rollout, algorithm.assign_credit(rollout))
    if algorithm.whiten_minibatches:
        batch = batch.whitened()
    logprobs_BT = batch.old_logprobs_BT.detach().clone().requires_grad_()
    new = Evaluation(logprobs_BT, torch.zeros_like(logprobs_BT), batch.old_values_BT)
    weights_BT = loss_weights(batch.mask_BT, algorithm.reduction, max_length)
    policy_BT = algorithm.loss_terms(new, batch)["policy"]
    (slope_BT,) = torch.autograd.grad(policy_BT, logprobs_BT, weights_BT)
    return -slope_BT


def spanned(weights_ET: Tensor) -> tuple[Tensor, Tensor]:
    """(shares [E, R], basis [R, T]), float64, with weights = shares @ basis and R as small as can
    be.

    R is 1 where all estimators weigh the steps of a response alike but for a factor, as those do
    whose credit is of whole responses: then one backward pass serves them all.
    """
    weights_ET = weights_ET.double()
    norms_E1 = weights_ET.norm(dim=1, keepdim=True)
    directions_ET = weights_ET / norms_E1.where(norms_E1 > 0, 1)
    _, values_R, basis_RT = torch.linalg.svd(directions_ET, full_matrices=False)
    basis_RT = basis_RT[values_R > SMALL * values_R[:1].clamp(min=1e-300)]
    return weights_ET @ basis_RT.T, basis_RT
