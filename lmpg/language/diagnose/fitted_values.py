"""A value head for a model that has none: least squares from hidden states to returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmpg.functional.least_squares import least_squares
from lmpg.types import Rollout

DAMPINGS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""In units of the features' mean square; the one that predicts unseen rows best is taken."""
UNSEEN = 4
"""One of so many rollouts is kept back to choose the damping by, one row in so many of a single
rollout."""


@torch.no_grad()
def fit_value_head(policy: Any, rollouts: Sequence[Rollout]) -> None:
    """Set the policy's value head to the linear function of hidden states that predicts the returns
    of these rollouts best (undiscounted, ridge regression)."""
    features, targets = [], []
    for rollout in rollouts:
        x_ND, y_N = _data(policy, rollout)
        features.append(x_ND)
        targets.append(y_N)
    x_ND, y_N = torch.cat(features), torch.cat(targets)
    mean_D, level = x_ND.mean(0), y_N.mean()
    centred_ND, rest_N = x_ND - mean_D, y_N - level
    size = float(centred_ND.square().mean())
    seen = (torch.arange(len(rest_N)) * UNSEEN // max(1, len(rest_N))) != UNSEEN - 1

    def loss(damping: float) -> float:
        w_D = least_squares(centred_ND[seen], rest_N[seen], damping * size)
        return float((rest_N[~seen] - centred_ND[~seen] @ w_D).square().mean())

    w_D = least_squares(centred_ND, rest_N, min(DAMPINGS, key=loss) * size)
    head = policy.value_head
    head.weight.copy_(w_D[None])
    head.bias.copy_(level - mean_D @ w_D)


def _data(policy: Any, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Hidden states before the steps that count, and the returns from there, float64."""
    returns_BT = rollout.returns_to_go(rollout.rewards_BT, 1.0)
    features, targets = [], []
    for b in rollout.counted_BT.any(1).nonzero()[:, 0].tolist():
        states = policy.states({name: x[b : b + 1] for name, x in rollout.inputs.items()})
        features.append(states.hidden_ND.double().cpu())
        targets.append(returns_BT[b].double()[states.step_N.cpu()])
    return torch.cat(features), torch.cat(targets)


def explained(rollouts: Sequence[Rollout]) -> float:
    """The share of the returns' variance that the values of these rollouts explain, at most 1."""
    values, returns = [], []
    for rollout in rollouts:
        mask_BT = rollout.counted_BT
        assert rollout.values_BT is not None
        values.append(rollout.values_BT[mask_BT])
        returns.append(rollout.returns_to_go(rollout.rewards_BT, 1.0)[mask_BT])
    y_N, v_N = torch.cat(returns).double(), torch.cat(values).double()
    return float(1 - (y_N - v_N).var() / y_N.var().clamp(min=1e-300))
