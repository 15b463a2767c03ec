"""Single steps of a vector environment (columns), and the rollout that they make together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmpg.types import Rollout


@dataclass
class Column:
    """One step of all B environments: observations, actions and rewards.

    acted: whether the row is a transition (False: its environment only reset).
    times: number of steps of the row's episode before this one.
    last: the final observations of the episodes that ended here, in the order of the rows.
    """

    features: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    acted: np.ndarray
    terminated: np.ndarray
    ended: np.ndarray
    times: np.ndarray
    last: np.ndarray | None = None

    @property
    def num_transitions(self) -> int:
        """How many rows are transitions."""
        return int(np.count_nonzero(self.acted))

    def cut_to(self, num_steps: int) -> int:
        """Mask out all transitions but the first `num_steps`; how many that were."""
        surplus = self.acted & (self.acted.cumsum() > num_steps)
        self.acted = self.acted & ~surplus
        return int(np.count_nonzero(surplus))


@torch.no_grad()
def rollout_of(columns: list[Column], features: np.ndarray, policy: Any) -> Rollout:
    """The rollout [B, T] of T columns, `features` being what is seen after the last of them.

    Log-probs and values come from one pass over all steps, the same that learning uses.
    """
    mask_BT = _rows([c.acted for c in columns])
    inputs = {
        "observations": _rows([c.features for c in columns]),
        "actions": _rows([c.actions for c in columns]),
    }
    now = policy.evaluate(inputs)
    next_values_BT = None
    if now.values_BT is not None:
        next_values_BT = _next_values(now.values_BT, columns, features, policy)
    return Rollout(
        inputs=inputs,
        mask_BT=mask_BT,
        logprobs_BT=now.logprobs_BT,
        rewards_BT=_rows([c.rewards for c in columns]).float() * mask_BT,
        terminated_BT=_rows([c.terminated for c in columns]) & mask_BT,
        ended_BT=_rows([c.ended for c in columns]) & mask_BT,
        scorable_B=torch.ones(len(mask_BT), dtype=torch.bool),
        values_BT=now.values_BT,
        next_values_BT=next_values_BT,
        times_BT=_rows([c.times for c in columns]),
    )


def _rows(columns: list[np.ndarray]) -> Tensor:
    """T arrays [B, …] as one tensor [B, T, …]."""
    joined = np.concatenate(columns).reshape(len(columns), *columns[0].shape)
    return torch.from_numpy(np.ascontiguousarray(joined.swapaxes(0, 1)))


def _next_values(
    values_BT: Tensor, columns: list[Column], features: np.ndarray, policy: Any
) -> Tensor:
    """V after each step: of the next one's observation, or of an ended episode's true last."""
    next_values_BT = torch.empty_like(values_BT)
    next_values_BT[:, :-1] = values_BT[:, 1:]
    next_values_BT[:, -1] = policy.values(torch.from_numpy(features))
    last = [c.last for c in columns if c.last is not None]
    if last:
        steps, rows = np.nonzero(np.stack([c.ended for c in columns]))
        next_values_BT[rows, steps] = policy.values(torch.from_numpy(np.concatenate(last)))
    return next_values_BT
